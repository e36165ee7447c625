"""The masks of a finished run, split by split, one row at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from pmm_ray.config import RunConfig
from pmm_ray.report.run_data import RunData, StageRecord, load_run
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import TableIndex, read_index
from pmm_ray.runtime.core.manifest import Manifest, open_manifest

_MAKERS = ("make_masks", "predict_masks")
_MANIFEST_COLUMNS = ["image_id", "split"]


@dataclass(frozen=True)
class SplitMasks:
    """The masks of one split.

    Attributes:
        split: its name.
        stage: the stage that made them.
        index: where each image's row is.
    """

    split: str
    stage: str
    index: TableIndex

    @property
    def image_ids(self) -> list[str]:
        return sorted(self.index.image_ids)


@dataclass(frozen=True)
class RunMasks:
    """What an exporter is given."""

    name: str
    """Of the run."""
    manifest: Manifest
    splits: tuple[SplitMasks, ...]
    settings: Mapping[str, Any]
    """The run's resolved configuration, as it stands in the file."""

    @property
    def config(self) -> RunConfig:
        """The run's resolved configuration.

        Raises:
            CannotRunError: another version of PMM-Ray wrote it, with other keys.
        """
        try:
            return RunConfig.model_validate(self.settings)
        except ValueError as error:
            raise CannotRunError(
                f"the run's resolved.yaml does not fit this version: {error}; export with the "
                "version that made the run, or run it again"
            ) from error

    def parts(self, masks: SplitMasks) -> Iterator[list[dict[str, Any]]]:
        """Rows of `tables.MASKS`, some dozens at a time."""
        table = masks.index.table
        for number, uri in enumerate(masks.index.parts):
            wanted = table.filter(pc.equal(table.column("part"), number)).column("row")
            if len(wanted):
                yield tables.read_table(uri).take(wanted).to_pylist()


def open_masks(run_dir: str, stage: str | None = None) -> RunMasks:
    """Find the masks of a run.

    Args:
        run_dir: uri of the run folder.
        stage: whose masks; None: for each split the last stage that made some.

    Raises:
        CannotRunError: the folder is no run, the run is not finished, it has no such stage, or it
            made no masks.
    """
    run = load_run(run_dir, with_curves=False)
    made = [s for s in run.stages if s.stage.split("-", 1)[0] in _MAKERS and s.summary is not None]
    if stage is None and not run.record.get("finished"):
        raise CannotRunError(
            f"{run.run_dir} is not finished: run `pmm run` to its end, or choose a stage that is "
            f"done with --masks ({', '.join(s.stage for s in made) or 'none is'})"
        )
    if stage is not None and stage not in [s.stage for s in made]:
        known = ", ".join(s.stage for s in made) or "none"
        raise CannotRunError(
            f"{run.run_dir} has no finished masks called {stage!r}; it has {known}"
        )
    # the masks of ladders and ablations are for comparison: only asked for by name
    chosen = [s for s in made if s.stage == stage or (stage is None and _is_result(s, run))]
    if run.manifest_uri is None or not chosen:
        raise CannotRunError(f"{run.run_dir} has made no masks yet")
    manifest = open_manifest(run.manifest_uri)
    table = tables.read_table(manifest.uri, _MANIFEST_COLUMNS)
    indices = [(s.stage, read_index(s.folder.uri)) for s in chosen]
    splits = []
    for split in manifest.splits:
        ids = table.filter(pc.equal(table.column("split"), split)).column("image_id").to_pylist()
        found = [(name, index.select(ids)) for name, index in indices]
        found = [(name, index) for name, index in found if len(index)]
        if found:
            splits.append(SplitMasks(split, *found[-1]))
    name = str(run.record.get("name", "run"))
    return RunMasks(name, manifest, tuple(splits), run.config)


def _is_result(record: StageRecord, run: RunData) -> bool:
    """Whether the masks are the run's own, and not those of a segmenter found worse."""
    found = re.fullmatch(r"make_masks|predict_masks-r(\d+)(-.*)?", record.stage)
    if found is None:
        return False
    number, held_out = found.groups()
    return not held_out or run.final_round is None or int(number) <= run.final_round
