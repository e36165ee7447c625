"""What `pmm refine` is given: scores with a background, or CAMs for a preset that makes its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pmm_ray.commands.masks import known_labels
from pmm_ray.config import section_hash
from pmm_ray.labels import MAX_FOREGROUND, LabelSpace
from pmm_ray.pipeline.run import Run
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, require_budget
from pmm_ray.runtime.rows.dataset import DataSet

if TYPE_CHECKING:
    from pmm_ray.sources.cam_detect import Detected
    from pmm_ray.sources.cam_files import CamFolder
    from pmm_ray.sources.importing import ImportReport
    from pmm_ray.sources.score_detect import DetectedScores
    from pmm_ray.stages.refine_scores import Seeds


@dataclass(frozen=True)
class Said:
    """What the user says of the files; each kind of them knows some of it, see `Reading` and
    `ScoreReading`."""

    layout: str | None = None
    key: str | None = None
    first_class: int | None = None
    background_channel: bool = False
    values: str = "auto"
    normalize: str = "none"
    class_ids: str = "auto"
    label_space: str | None = None
    trust_pickle: bool = False


def read_scores(run: Run, found: CamFolder, images: str, said: Said) -> tuple[ImportReport, Seeds]:
    """Scores with a background."""
    return _seeds_of_scores(run, found, images, said, _detect_scores(run, found, images, said))


def read_maps(run: Run, found: CamFolder, images: str, said: Said) -> tuple[ImportReport, Seeds]:
    """What a preset needs that makes a background of its own: CAMs, or the classes of scores."""
    from pmm_ray.sources.cam_layouts import LAYOUTS
    from pmm_ray.sources.score_files import ForegroundReader, ScoreReader

    if _are_cams(run, found, said):
        return _read_cams(run, found, images, said)
    try:
        known = _detect_scores(run, found, images, said)
    except CannotRunError as error:
        if said.layout is not None and said.layout not in LAYOUTS:
            raise
        return _read_cams(run, found, images, said, error)
    report, seeds = _seeds_of_scores(run, found, images, said, known)
    assert isinstance(seeds.read, ScoreReader)
    run.say("the preset makes its own background: that of the scores is left out")
    return report, replace(seeds, read=ForegroundReader(seeds.read))


def _are_cams(run: Run, found: CamFolder, said: Said) -> bool:
    """Whether files fit a layout of CAMs, and their planes do not add up to one.

    Their range says nothing: interpolation leaves values slightly below 0 and above 1.
    """
    if said.values != "auto" or said.background_channel:
        return False
    try:
        known = _detect_cams(run, found, said)
    except CannotRunError:
        return False
    return bool(known.peeks) and not any(peek.adds_up for peek in known.peeks)


def _detect_scores(run: Run, found: CamFolder, images: str, said: Said) -> DetectedScores:
    from pmm_ray.sources.folder import read_folder_classes
    from pmm_ray.sources.label_files import read_label_space
    from pmm_ray.sources.score_detect import asked_scores, detect_scores

    if said.normalize != "none":
        raise CannotRunError("--normalize is for CAMs, not for scores")
    reading = asked_scores(
        layout=said.layout,
        key=said.key,
        first_class=said.first_class,
        background_channel=said.background_channel,
        values=said.values,
        class_ids=said.class_ids,
    )
    # what people say comes before what a number of planes means
    space = None if said.label_space is None else read_label_space(said.label_space)
    if space is None and (listed := read_folder_classes(storage.absolute(images), "cams")):
        space = listed.space
    max_pixels = run.config.data.max_pixels
    return detect_scores(
        found, reading, space, trust_pickle=said.trust_pickle, max_pixels=max_pixels
    )


def _seeds_of_scores(
    run: Run, found: CamFolder, images: str, said: Said, known: DetectedScores
) -> tuple[ImportReport, Seeds]:
    from pmm_ray.sources.score_files import ScoreReader
    from pmm_ray.stages.refine_scores import Seeds

    run.say(known.line)
    report = _import(run, found, images, known.space, said)
    space, max_pixels = report.manifest.label_space, run.config.data.max_pixels
    reader = ScoreReader(space, said.trust_pickle, max_pixels, known.reading)
    index = found.index.select(run.data.images.image_ids)
    mark = section_hash(run.data.hash, found.fingerprint, str(known.reading))
    return report, Seeds(index, mark, reader, known.planes)


def _detect_cams(run: Run, found: CamFolder, said: Said) -> Detected:
    from pmm_ray.sources.cam_detect import asked, detect
    from pmm_ray.sources.cam_reader import CamReader

    reading = asked(
        layout=said.layout,
        key=said.key,
        first_class=said.first_class,
        background_channel=said.background_channel,
        normalize=said.normalize,
        class_ids=said.class_ids,
    )
    max_pixels = run.config.data.max_pixels
    return detect(found, CamReader(MAX_FOREGROUND, said.trust_pickle, max_pixels, reading))


def _read_cams(
    run: Run,
    found: CamFolder,
    images: str,
    said: Said,
    no_scores: CannotRunError | None = None,
) -> tuple[ImportReport, Seeds]:
    """CAMs, to which the preset adds a background; `no_scores` says why they are no scores."""
    from pmm_ray.sources.cam_detect import with_class_ids
    from pmm_ray.sources.cam_reader import CamReader
    from pmm_ray.sources.label_files import read_label_space
    from pmm_ray.stages.refine_scores import Seeds

    if said.values != "auto" and no_scores is not None:
        raise no_scores
    known = _detect_cams(run, found, said)
    if not known.peeks and no_scores is not None:
        raise no_scores
    max_pixels = run.config.data.max_pixels
    space = None if said.label_space is None else read_label_space(said.label_space)
    report = _import(run, found, images, space, said)
    space = report.manifest.label_space
    known = with_class_ids(known, space, known_labels(report.manifest.uri, known))
    run.say(known.line)
    reader = CamReader(space.num_foreground, said.trust_pickle, max_pixels, known.reading)
    index = found.index.select(run.data.images.image_ids)
    mark = section_hash(run.data.hash, found.fingerprint, str(known.reading))
    planes = max((len(peek.labels) for peek in known.peeks), default=0) + 1
    return report, Seeds(index, mark, reader, planes)


def _import(
    run: Run, found: CamFolder, images: str, space: LabelSpace | None, said: Said
) -> ImportReport:
    from pmm_ray.sources.cam_import import import_photographs
    from pmm_ray.sources.understood import console

    config = run.config
    report = import_photographs(
        images,
        found,
        run.session.run_dir,
        trust_pickle=said.trust_pickle,
        max_pixels=config.data.max_pixels,
        space=space,
    )
    require_budget("import", report.errors, config.errors.budget, report.total)
    run.say(console(report))
    run.data = DataSet(report.manifest)
    return report
