"""The data section: where photographs and labels come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pmm_ray.config.base import Positive, Section, execution


class DataConfig(Section):
    """Where the photographs and labels come from."""

    source: Literal["shapes", "voc12", "folder", "manifest"] = "shapes"
    """`shapes` makes its own; the others read `root` (for `manifest`: a manifest.parquet)."""
    root: str = ""
    """Folder or uri of the data set; give it with `--set data.root=...`."""
    train_split: str = "train"
    """Split that the classifier and the segmenter are trained on."""
    held_out_split: str = "val"
    """Split that is never trained on: evaluation, selection."""
    labels_from: Literal["auto", "cls_labels", "xml", "masks"] = "auto"
    """`voc12`: where image-level labels come from."""
    trust_pickle: bool = False
    """`voc12`: allow `cls_labels.npy`, which is a pickle. Only for files you trust."""
    images: int = Field(120, ge=4)
    """`shapes`: number of images to draw, all splits together."""
    classes: int = Field(4, ge=2, le=6)
    """`shapes`: number of foreground classes."""
    size: int = Field(128, ge=48)
    """`shapes`: typical side, px."""
    max_pixels: Positive = execution(178_956_970)
    """Largest image that is decoded, px; a larger one becomes an error row (`too_large`)."""

    @model_validator(mode="after")
    def _needs_root(self) -> DataConfig:
        if self.train_split == self.held_out_split:
            raise ValueError("data.train_split and data.held_out_split must differ")
        return self
