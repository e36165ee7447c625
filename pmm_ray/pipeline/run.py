"""Following the steps of a run: each becomes a stage when those before it are done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pmm_ray.config import ClassifierConfig, RunConfig, to_yaml
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import RESOLVED_FILE
from pmm_ray.runtime.core.record import refuse_others_run
from pmm_ray.runtime.core.selection import Selection, base_name, section_name
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import Stage, StageFolder
from pmm_ray.runtime.rows.dataset import DataSet

if TYPE_CHECKING:
    from pmm_ray.runtime.core.progress import Progress
    from pmm_ray.runtime.core.resources import ClusterResources


@dataclass(frozen=True)
class Step:
    """A place in the list of a run's stages.

    Attributes:
        name: of its stage.
        make: the stage, once those before it are done; None: this data set has nothing for it.
        after: called when the step is done. If it returns True, the step's cycle ends.
        check: finds out at the start, not after hours, that a file it needs cannot be used.
        measures: it measures what the step before it made, and is selected with it.
        streamed: its table is not stored: the stages that read it make it themselves.
        section: what it trains by, where it is a training.
        pool: the key that bounds its workers, where one does: `masks.tasks`.
        cycle: steps of one cycle end together.
    """

    name: str
    make: Callable[[Run], Stage | None]
    after: Callable[[Run], bool | None] = lambda run: None
    check: Callable[[RunConfig], object] = lambda config: None
    measures: bool = False
    streamed: bool = False
    section: Callable[[RunConfig], Any] | None = None
    pool: str = ""
    cycle: str = ""


class Run:
    """What the steps of one session have made so far.

    Args:
        session: that does the stages.
        steps: all of them, in order; names are unique.
        writes_config: whether the folder's `resolved.yaml` is of these steps.
    """

    def __init__(self, session: Session, steps: Sequence[Step], writes_config: bool = True) -> None:
        self.session = session
        self.steps = steps
        self._writes_config = writes_config
        self.folders: dict[str, StageFolder] = {}
        """Of the steps that were done, by name."""
        self._data: DataSet | None = None

    @property
    def config(self) -> RunConfig:
        """The recipe, with what was decided on the way."""
        return self.session.config

    @config.setter
    def config(self, config: RunConfig) -> None:
        self.session.config = config
        if self._writes_config:
            uri = storage.join(self.session.run_dir, RESOLVED_FILE)
            storage.write_bytes(uri, to_yaml(config).encode())

    @property
    def data(self) -> DataSet:
        assert self._data is not None, "import_data comes first"
        return self._data

    @data.setter
    def data(self, data: DataSet) -> None:
        self._data = data
        self.session.data = data.manifest

    def __getitem__(self, name: str) -> StageFolder:
        """The folder of a step that is done."""
        return self.folders[name]

    def say(self, text: str) -> None:
        self.session.progress.message(text)

    def evaluation(self, masks: str) -> StageFolder | None:
        """The scores of the held-out masks that a step made; None: they were not scored."""
        split = self.config.data.held_out_split
        for name, folder in self.folders.items():
            if base_name(name) == "evaluate":
                details = folder.finished().details
                if (details["masks_stage"], details["split"]) == (masks, split):
                    return folder
        return None

    def score(self, masks: str) -> float | None:
        """mIoU 0..1 of the held-out masks that a step made; None: they were not scored."""
        scored = self.evaluation(masks)
        return None if scored is None else scored.finished().metrics.get("mean_iou")

    def follow(self) -> None:
        """Do every selected step that is not done, and write down that the attempt has ended.

        Raises:
            CannotRunError: a step cannot be done, or one that is not selected was not.
        """
        selection = self.session.selection
        _require_backends(self.config)
        tried: list[Any] = []
        for step in self.steps:
            if selection.has(step.name):
                step.check(self.config)
                if step.section is not None and (section := step.section(self.config)) not in tried:
                    _try_training(step.name, section)
                    tried.append(section)
        ended: set[str] = set()
        for step in self.steps:
            if step.cycle and step.cycle in ended:
                continue
            if selection.ended(step.name):
                break
            stage = step.make(self)
            if stage is not None:
                folder = stage.folder(self.session.run_dir)
                # the last stage that was asked for is stored all the same
                stored = not step.streamed or selection.last_is(step.name)
                stored |= folder.summary() is not None
                self.folders[step.name] = self.session.do(stage) if stored else folder
            if step.after(self):
                ended.add(step.cycle)
        self.session.write_record(finished=True)


@contextlib.contextmanager
def open_run(
    place: str,
    config: RunConfig,
    steps: Sequence[Step],
    progress: Progress,
    address: str = "auto",
    *,
    adds: Collection[str] | None = None,
    kept: Collection[str] = (),
    shared: Collection[str] = (),
    **selected: Any,
) -> Iterator[Run]:
    """Become the one writer of a run folder, for the length of a `with` block.

    Args:
        address: `auto`, `local`, or a Ray address.
        adds, kept, shared: see `RunRecord`. What is added to a run leaves its configuration alone.
        selected: `first`, `last`, `only`, `fresh`, `retry_errors`, see `Selection`.

    Raises:
        CannotRunError: another run is alive in the folder, or there is no stage of a name.
    """
    plan = tuple(step.name for step in steps)
    assert len(set(plan)) == len(plan), "each step has a name of its own"
    measures = frozenset(step.name for step in steps if step.measures)
    selection = Selection(plan, measures=measures, **selected)

    @contextlib.contextmanager
    def connect() -> Iterator[ClusterResources]:
        from pmm_ray.runtime.cluster.connect import connect as connect_to_ray

        with connect_to_ray(address, config.runtime, place) as cluster:
            if cluster.local and config.runtime.autoscaled_nodes:
                progress.message(
                    "runtime.autoscaled_nodes does not count: this Ray is the command's own, to "
                    "which no node comes (--address or RAY_ADDRESS names a cluster)"
                )
            if config.runtime.preflight and not cluster.local and cluster.nodes > 1:
                _look_at_nodes(session, [step for step in steps if selection.has(step.name)])
            yield cluster

    with Session(place, config, selection, progress, connect, adds, kept, shared) as session:
        session.hold()
        beside = adds is not None and storage.exists(storage.join(place, RESOLVED_FILE))
        yield Run(session, steps, writes_config=not beside)


@contextlib.contextmanager
def open_command(
    place: str, config: RunConfig, steps: Sequence[Step], progress: Progress, address: str = "auto"
) -> Iterator[Run]:
    """`open_run` for a command that has a folder to itself, and no `--retry-errors`.

    The same command goes on there, and takes failed images again.

    Raises:
        CannotRunError: it is another command's; or see `open_run`.
    """
    refuse_others_run(place, [step.name for step in steps])
    with open_run(place, config, steps, progress, address, retry_errors=True) as run:
        run.session.write_record()  # the folder is this command's from now on
        yield run


def _look_at_nodes(session: Session, steps: Sequence[Step]) -> None:
    """Refuse a cluster of several nodes if one of them cannot do its part."""
    from pmm_ray.runtime.cluster.preflight import inspect_cluster

    manifest = None if session.data is None else session.data.uri
    inputs, scratch = needs_of_nodes(session.config, steps, manifest)
    inspect_cluster(
        session.run_dir, session.config.runtime, inputs=inputs, scratch_bytes=scratch
    ).require_healthy()


def needs_of_nodes(
    config: RunConfig, steps: Sequence[Step], manifest_uri: str | None
) -> tuple[list[str], int]:
    """What steps need of every node: files and folders, and bytes of scratch.

    Args:
        steps: that will run.
        manifest_uri: of the data set; None: not imported yet, its masks are not counted.

    Raises:
        CannotRunError: see `worker_files`.
    """
    from pmm_ray.nets.weight_files import worker_files
    from pmm_ray.runtime.cluster.preflight import training_scratch

    sections = [step.section(config) for step in steps if step.section]
    files = {uri for section in sections for uri in worker_files(section).values()}
    if config.data.root:
        files.add(storage.absolute(config.data.root))
    # First classifiers learn from labels and need no file of masks. Of the others each replaces the
    # file of the one before.
    masks = any(type(section) is not ClassifierConfig for section in sections)
    scratch = training_scratch(manifest_uri, config.data.train_split) if masks else 0
    return sorted(files), scratch


def _try_training(name: str, section: Any) -> None:
    """Find out now that a training's files are not where they should be, or cannot be used.

    Raises:
        CannotRunError: see `worker_files` and `try_training`.
    """
    from pmm_ray.nets.trial import try_training
    from pmm_ray.nets.weight_files import worker_files

    for key, uri in worker_files(section).items():
        if not storage.exists(uri):
            raise CannotRunError(f"{section_name(name)}.{key}: there is no file {uri}")
    try_training(section)


def _require_backends(config: RunConfig) -> None:
    """Find out now that the package of a CRF backend is missing.

    Raises:
        CannotRunError: it is, on this machine.
    """
    for name in RunConfig.model_fields:
        backend = getattr(getattr(config, name), "backend", "lattice")
        if backend != "lattice" and find_spec(backend) is None:
            raise CannotRunError(
                f"{name}.backend: {backend} is not installed: pip install 'pmm-ray[{backend}]' on "
                f"every node, or set {name}.backend: lattice"
            )
