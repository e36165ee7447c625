"""The data section: where photographs and labels come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pmm_ray.config.base import Positive, Section, added, execution


class DataConfig(Section):
    """Where the photographs and labels come from."""

    source: Literal["shapes", "voc12", "coco14", "folder", "coco", "parquet", "manifest"] = "shapes"
    """`shapes` makes its own; the others read `root`: `voc12` a VOCdevkit, with SBD beside it or
    not; `coco14` the folder with `annotations/instances_train2014.json`; `folder` photographs and
    a CSV; `coco` COCO-style JSON with any categories; `parquet` image bytes and labels as
    Hugging Face's datasets are stored; `manifest` a manifest.parquet."""
    root: str = ""
    """Folder or uri of the data set; give it with `--set data.root=...`."""
    train_split: str = "train"
    """Split that trains the classifier and the segmenter. `voc12`: a list below
    ImageSets/Segmentation (`train_aug`, `train`); `coco14`: `train` or `train2014`."""
    held_out_split: str = "val"
    """Split for evaluation and selection, never for training. `coco14`: `val` or `val2014`."""
    labels_from: Literal[
        "auto", "cls_labels", "xml", "masks", "annotations", "lists", "folders"
    ] = "auto"
    """Where image-level labels come from. `voc12`: cls_labels, xml, masks or lists; `coco14`:
    annotations (`auto`) or lists; `folder`: a CSV (`auto`), or folders named by class."""
    label_column: str = added("")
    """`folder`, `parquet`: the column of labels, where `labels`, `label`, `classes` or `class` is
    not it, or two of them differ."""
    lists: str = ""
    """`voc12`, `coco14`: folder of the field's lists, `NAME.txt` (ids) and `NAME_cls.txt` (ids and
    classes, from 0); what differs from them is written to differences.csv."""
    ground_truth: Literal["all", "held_out", "none"] = "all"
    """`coco14`, `coco`: for which splits masks are made of the annotations, for evaluation.
    `voc12`, `folder`: whether the masks that are there count (`all`, `none`)."""
    overlap: Literal["last", "smallest", "highest_id", "ignore"] = "last"
    """`coco14`, `coco`: class of a mask pixel that several objects cover: the later one of the
    file, the smallest one, the highest class id, or the ignore value where classes differ.
    `last` gives the labels of the field's COCO lists on all images tried."""
    crowd: Literal["class", "ignore", "background"] = "class"
    """`coco14`, `coco`: value of a crowd region in a mask: its class like any object, the ignore
    value where no object covers it, or background."""
    trust_pickle: bool = False
    """`voc12`: allow `cls_labels.npy`, which is a pickle. Only for files you trust."""
    images: int = Field(120, ge=4)
    """`shapes`: number of images to make, all splits together."""
    classes: int = Field(4, ge=2, le=6)
    """`shapes`: number of foreground classes."""
    size: int = Field(128, ge=48)
    """`shapes`: typical side, px."""
    max_pixels: Positive = execution(178_956_970)
    """Largest image to decode, px; a larger one becomes an error row (`too_large`)."""

    @model_validator(mode="after")
    def _splits_differ(self) -> DataConfig:
        if self.train_split == self.held_out_split:
            raise ValueError("data.train_split and data.held_out_split must differ")
        return self
