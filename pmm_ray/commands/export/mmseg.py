"""A run as a project of mmsegmentation: photographs, masks, lists, and a complete config.

    OUT/config.py              trains, validates and tests the run's segmenter: `tools/train.py`
    OUT/splits/SPLIT.txt       names of a split's images
    OUT/images/SPLIT/          the photographs, byte for byte; as PNG where OpenCV does not read
                               their format, or may show them otherwise than their masks are:
                               transparent, of 16 bits, or turned by metadata
    OUT/masks/SPLIT/           indexed PNG: pseudo-masks of the training split; of other splits the
                               ground truth where there is some

The tree can be moved. Our network parts and losses are found through the config's `custom_imports`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pmm_ray.commands.export.mmseg_config import Tree, config_text
from pmm_ray.commands.export.out import Out
from pmm_ray.commands.export.source import FEW_READ, RunMasks, Written, in_threads, portable
from pmm_ray.report.outcome import SplitMasks
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.rows.images import FORMATS, decode_mask, encode_mask, read_file

_COLUMNS = ["image_id", "uri", "split", "ground_truth_uri"]
# mmsegmentation keeps class ids in 8 bits
_MOST_CLASSES = 255
_NOT_OPENCVS = tuple(ending for name in FEW_READ for ending in FORMATS[name])


@dataclass(frozen=True)
class _Split:
    """What is written of one split."""

    masks: SplitMasks
    rows: list[dict[str, Any]]
    """Of the manifest."""
    truth: bool
    """Whether the masks are its ground truth."""


def write(masks: RunMasks, out: Out, progress: Progress) -> Written:
    """Write the project below `out`.

    Raises:
        CannotRunError: the run has no masks of its training split, or more classes than
            mmsegmentation's 8 bits hold.
    """
    manifest, train = masks.manifest, masks.config.data.train_split
    if manifest.label_space.num_classes > _MOST_CLASSES:
        raise CannotRunError(
            f"mmsegmentation keeps class ids in 8 bits: {manifest.label_space.num_classes} classes "
            "are too many; export --format voc writes 16-bit masks"
        )
    if train not in [split.split for split in masks.splits]:
        raise CannotRunError(f"the run has no masks of its training split {train!r}")
    table = tables.read_table(manifest.uri, _COLUMNS).to_pylist()
    splits = [_split(masks, split, table) for split in masks.splits]
    suffixes = {_suffix(row) for split in splits for row in split.rows}
    # mmsegmentation knows one suffix: with several, it is part of an image's name
    suffix = suffixes.pop() if len(suffixes) == 1 else ""
    written = Written()
    lists: dict[str, list[str]] = {}
    for split in splits:
        if split.truth:
            with_truth = {row["image_id"] for row in split.rows}
            if lone := sorted(set(split.masks.image_ids) - with_truth):
                written.left_out.setdefault("no ground truth", []).extend(lone)
        lists[split.masks.split] = _write_split(masks, split, suffix, out, progress, written)
    if not written.image_ids:
        return written
    for name, stems in lists.items():
        listed = "".join(f"{stem}\n" for stem in stems)
        storage.write_bytes(out.place("splits", f"{name}.txt"), listed.encode())
    held_out = [s for s in splits if s.masks.split != train]
    tree = Tree(train, held_out[-1].masks.split if held_out else train, suffix)
    taught = next(s.masks for s in splits if s.masks.split == train)
    cyclic = taught.stage.startswith("predict_masks")
    text = config_text(masks.config, manifest, tree, cyclic=cyclic)
    storage.write_bytes(out.place("config.py"), text.encode())
    told = [f"{s.masks.split} from {'ground truth' if s.truth else s.masks.stage}" for s in splits]
    used = ["pixel labels used"] if any(s.truth for s in splits) else []
    progress.message(f"{out.uri}: {', '.join(told + used)}")
    return written


def _suffix(row: dict[str, Any]) -> str:
    """The ending that a row of the manifest's photograph has here."""
    own = PurePosixPath(row["uri"]).suffix
    return ".png" if own.lower() in _NOT_OPENCVS else own


def _split(masks: RunMasks, split: SplitMasks, table: list[dict[str, Any]]) -> _Split:
    rows = [row for row in table if row["split"] == split.split]
    truth = [row for row in rows if row["ground_truth_uri"]]
    if split.split != masks.config.data.train_split and truth:
        return _Split(split, truth, truth=True)
    made = set(split.image_ids)
    return _Split(split, [row for row in rows if row["image_id"] in made], truth=False)


def _write_split(
    masks: RunMasks, split: _Split, suffix: str, out: Out, progress: Progress, written: Written
) -> list[str]:
    """Write one split; images that cannot be used become error rows of `written`.

    Returns:
        The names of the others, sorted.
    """
    manifest, name = masks.manifest, split.masks.split
    stems = {
        row["image_id"]: tables.check_image_id(row["image_id"]) + ("" if suffix else _suffix(row))
        for row in split.rows
    }

    def copy(row: dict[str, Any]) -> RowError | None:
        stem = stems[row["image_id"]]
        uri = manifest.locate(row["uri"])
        try:
            # OpenCV goes by the content: a PNG may have its photograph's name
            data, png = portable(uri, apply_exif=manifest.apply_exif)[0], b""
            if split.truth:
                uri = manifest.locate(row["ground_truth_uri"])
                png = encode_mask(decode_mask(read_file(uri), uri=uri), manifest.label_space)
        except RowError as error:
            return error
        except ValueError as error:
            return RowError("label", str(error), uri)
        storage.write_bytes(out.place("images", name, stem + suffix), data)
        if split.truth:
            storage.write_bytes(out.place("masks", name, f"{stem}.png"), png)
        return None

    def write_mask(row: dict[str, Any]) -> None:
        if stem := stems.get(row["image_id"]):
            storage.write_bytes(out.place("masks", name, f"{stem}.png"), row["mask_png"])

    with progress.stage(f"export {name}", len(split.rows)) as shown:
        for row, problem in zip(split.rows, in_threads(copy, split.rows), strict=True):
            if problem is not None:
                uri = problem.uri or row["uri"]
                written.fail(row["image_id"], problem.kind, problem.message, uri)
                out.keep(name, row["image_id"])
                del stems[row["image_id"]]
            shown.advance(1, problem is not None)
        if not split.truth:
            for part in masks.parts(split.masks):
                for _ in in_threads(write_mask, part):
                    pass
    written.image_ids |= set(stems)
    return sorted(stems.values())
