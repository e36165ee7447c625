"""The images of a run: what stages ask of its manifest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow.compute as pc

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.fingerprints import fingerprint
from pmm_ray.runtime.core.index import TableIndex, index_file
from pmm_ray.runtime.core.manifest import Manifest, manifest_hash, open_manifest
from pmm_ray.runtime.core.tables import read_table


@dataclass(frozen=True)
class DataSet:
    """An opened manifest and the ground truth made for it.

    Attributes:
        truth: hash of the stage that made the ground-truth masks, if one did; else empty.
        files: fingerprint of the photographs' files where they count; else empty.
    """

    manifest: Manifest
    truth: tuple[str, ...] = ()
    files: str = ""

    @classmethod
    def open(cls, uri: str) -> DataSet:
        """Raises CannotRunError where there is no manifest, see `open_manifest`."""
        return cls(open_manifest(uri))

    def with_truth_of(self, stage_hash: str) -> DataSet:
        """The same images, with the masks that a stage made."""
        return replace(self, truth=(stage_hash,))

    def with_files(self) -> DataSet:
        """The same images, whose hash changes when a photograph is written again."""
        rows = read_table(self.manifest.uri, ["image_id", "uri"])
        ids, uris = (rows.column(name).to_pylist() for name in ("image_id", "uri"))
        names = {self.manifest.locate(uri): i for uri, i in zip(uris, ids, strict=True)}
        return replace(self, files=fingerprint(names))

    @cached_property
    def hash(self) -> str:
        """Of all that decides results, see `manifest_hash`."""
        return manifest_hash(self.manifest.uri) + self.files

    @cached_property
    def images(self) -> TableIndex:
        """Where each image's row of the manifest is."""
        return index_file(self.manifest.uri)

    def split(self, *splits: str) -> TableIndex:
        """Where the rows of some splits are."""
        return index_file(self.manifest.uri, {"split": splits})

    def labelled(self, *splits: str) -> TableIndex:
        """Where the rows of some splits are that have an image-level label.

        Raises:
            CannotRunError: there are none.
        """
        index = index_file(self.manifest.uri, {"split": splits}, labelled=True)
        if not len(index):
            raise CannotRunError(
                f"{self.manifest.uri}: no image of {' or '.join(dict.fromkeys(splits))} has an "
                "image-level label: its maps would be of no class"
            )
        return index

    def with_truth(self, split: str) -> list[str]:
        """Ids of a split's images that have a ground-truth mask."""
        table = read_table(self.manifest.uri, ["image_id", "split", "ground_truth_uri"])
        has_truth = pc.fill_null(pc.not_equal(table.column("ground_truth_uri"), ""), False)
        chosen = pc.and_(pc.equal(table.column("split"), split), has_truth)
        return table.column("image_id").filter(chosen).to_pylist()

    def scorable(self, split: str) -> list[str]:
        """Ids of a split's images whose maps can be scored.

        They have a ground-truth mask, and an image-level label: without one there is no map.
        """
        labelled = index_file(self.manifest.uri, {"split": [split]}, labelled=True)
        return labelled.select(self.with_truth(split)).image_ids
