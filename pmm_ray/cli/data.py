"""`pmm data ...`: make or import a data set."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pmm_ray.cli.app import Address, data_app


@data_app.command("shapes")
def data_shapes(
    out: Annotated[str, typer.Argument(help="Folder or uri to make, or made by it.")],
    images: Annotated[int, typer.Option(min=4, help="How many images.")] = 120,
    classes: Annotated[int, typer.Option(min=2, max=6, help="Foreground classes.")] = 4,
    size: Annotated[int, typer.Option(min=48, help="Typical side, px.")] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> int:
    """Make a synthetic, textured, multi-class data set with exact masks."""
    from pmm_ray.commands.data import make_dataset

    return make_dataset(out, images=images, classes=classes, size=size, seed=seed)


@data_app.command("import")
def data_import(
    source: Annotated[
        Literal["voc12", "coco14", "folder", "coco", "parquet"],
        typer.Argument(help="What ROOT is."),
    ],
    root: Annotated[str, typer.Argument(help="Folder or uri of the data set.")],
    out: Annotated[str, typer.Option(help="Folder for manifest.parquet and masks.")],
    split: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable; the last one is held out. voc12: train_aug, val."),
    ] = None,
    labels_from: Annotated[
        Literal["auto", "cls_labels", "xml", "masks", "annotations", "lists", "folders"],
        typer.Option(help="Source of the labels. folder: folders are named by class."),
    ] = "auto",
    label_column: Annotated[
        str, typer.Option(help="folder, parquet: column of labels, if called otherwise.")
    ] = "",
    lists: Annotated[
        str, typer.Option(help="voc12, coco14: folder of NAME.txt, NAME_cls.txt to compare with.")
    ] = "",
    ground_truth: Annotated[
        Literal["all", "held_out", "none"],
        typer.Option(help="coco14, coco: splits to make masks of. voc12, folder: all or none."),
    ] = "all",
    overlap: Annotated[
        Literal["last", "smallest", "highest_id", "ignore"],
        typer.Option(help="coco14, coco: class of a pixel that several objects cover."),
    ] = "last",
    crowd: Annotated[
        Literal["class", "ignore", "background"],
        typer.Option(help="coco14, coco: value of crowd regions."),
    ] = "class",
    trust_pickle: Annotated[
        bool, typer.Option(help="voc12: allow cls_labels.npy, which is a pickle.")
    ] = False,
    address: Address = "auto",
) -> int:
    """Turn a data set into a manifest; what cannot be used becomes error rows beside it."""
    from pmm_ray.commands.data import import_dataset
    from pmm_ray.config import DataConfig, RunConfig

    splits = split or (["train_aug", "val"] if source == "voc12" else ["train", "val"])
    config = RunConfig(
        data=DataConfig(
            source=source,
            root=root,
            labels_from=labels_from,
            label_column=label_column,
            lists=lists,
            ground_truth=ground_truth,
            overlap=overlap,
            crowd=crowd,
            trust_pickle=trust_pickle,
        )
    )
    return import_dataset(config, out, splits, address)


@data_app.command("download")
def data_download(
    dataset: Annotated[Literal["voc12", "sbd", "coco14"], typer.Argument(help="What to download.")],
    root: Annotated[str, typer.Argument(help="Local folder to make it in.")],
    mirror: Annotated[
        str | None,
        typer.Option(
            envvar="PMM_MIRROR", help="Url of a folder with the archives under their own names."
        ),
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Archives loaded at once.")] = 3,
) -> int:
    """Download and extract a data set; the same command goes on where it was interrupted."""
    from pmm_ray.runtime.core.guard import guarded
    from pmm_ray.sources.download import download

    return guarded(
        lambda progress: download(dataset, root, mirror=mirror, parallel=parallel, say=typer.echo)
    )
