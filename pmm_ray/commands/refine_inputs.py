"""What `pmm refine` is given: scores with a background, or CAMs for a preset that makes its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pmm_ray.commands.masks import cams_of, detect_cams, import_cams, import_with
from pmm_ray.config import section_hash
from pmm_ray.pipeline.run import Run
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.cams.said import Said

if TYPE_CHECKING:
    from pmm_ray.sources.cams.cam_files import CamFolder
    from pmm_ray.sources.cams.score_detect import DetectedScores
    from pmm_ray.sources.importing.import_report import ImportReport
    from pmm_ray.stages.refine_scores import Seeds


def read_scores(run: Run, found: CamFolder, images: str, said: Said) -> tuple[ImportReport, Seeds]:
    """Scores with a background."""
    return _seeds_of_scores(run, found, images, said, _detect_scores(run, found, images, said))


def read_maps(run: Run, found: CamFolder, images: str, said: Said) -> tuple[ImportReport, Seeds]:
    """What a preset needs that makes a background of its own: CAMs, or the classes of scores."""
    from pmm_ray.sources.cams.cam_layouts import LAYOUTS
    from pmm_ray.sources.cams.score_files import ForegroundReader, ScoreReader

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
        known = detect_cams(run, found, said)
    except CannotRunError:
        return False
    return bool(known.peeks) and not any(peek.adds_up for peek in known.peeks)


def _detect_scores(run: Run, found: CamFolder, images: str, said: Said) -> DetectedScores:
    from pmm_ray.sources.cams.score_detect import asked_scores, detect_scores
    from pmm_ray.sources.datasets.folder import read_folder_classes
    from pmm_ray.sources.labels.label_files import read_label_space

    # what people say comes before what a number of planes means
    space = None if said.label_space is None else read_label_space(said.label_space)
    if space is None and (listed := read_folder_classes(storage.absolute(images), "cams")):
        space = listed.space
    max_pixels = run.config.data.max_pixels
    return detect_scores(
        found, asked_scores(said), space, trust_pickle=said.trust_pickle, max_pixels=max_pixels
    )


def _seeds_of_scores(
    run: Run, found: CamFolder, images: str, said: Said, known: DetectedScores
) -> tuple[ImportReport, Seeds]:
    from pmm_ray.sources.cams.score_files import ScoreReader
    from pmm_ray.stages.refine_scores import Seeds

    run.say(known.line)
    report = import_with(run, found, images, said, space=known.space)
    space, max_pixels = report.manifest.label_space, run.config.data.max_pixels
    reader = ScoreReader(space, said.trust_pickle, max_pixels, known.reading)
    index = found.index.select(run.data.images.ids)
    mark = section_hash(run.data.hash, found.fingerprint, str(known.reading))
    return report, Seeds(index, mark, reader, known.planes)


def _read_cams(
    run: Run,
    found: CamFolder,
    images: str,
    said: Said,
    no_scores: CannotRunError | None = None,
) -> tuple[ImportReport, Seeds]:
    """CAMs, to which the preset adds a background; `no_scores` says why they are no scores."""
    from pmm_ray.sources.labels.label_files import read_label_space
    from pmm_ray.stages.refine_scores import Seeds

    if said.values != "auto" and no_scores is not None:
        raise no_scores
    known = detect_cams(run, found, said)
    if not known.peeks and no_scores is not None:
        raise no_scores
    space = None if said.label_space is None else read_label_space(said.label_space)
    report, known = import_cams(run, found, known, images, said, space=space)
    cams = cams_of(run, found, known, said)
    planes = max((len(peek.labels) for peek in known.peeks), default=0) + 1
    return report, Seeds(cams.index, cams.hash, cams.read, planes)
