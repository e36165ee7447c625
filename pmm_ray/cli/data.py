"""`pmm data ...`: make or import a data set."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pmm_ray.cli.app import data_app


class LabelsFrom(StrEnum):
    """Where VOC12's image-level labels come from."""

    auto = "auto"
    cls_labels = "cls_labels"
    xml = "xml"
    masks = "masks"


@data_app.command("shapes")
def data_shapes(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    images: Annotated[int, typer.Option(min=4, help="How many images.")] = 120,
    classes: Annotated[int, typer.Option(min=2, max=6, help="Foreground classes.")] = 4,
    size: Annotated[int, typer.Option(min=48, help="Typical side, px.")] = 128,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Draw a synthetic, textured, multi-class data set with exact masks."""
    from pmm_ray.sources.shapes import make_shapes

    _print_import(
        lambda: make_shapes(str(out), images=images, classes=classes, size=size, seed=seed)
    )


class Importable(StrEnum):
    """Data sets that `pmm data import` knows."""

    voc12 = "voc12"
    folder = "folder"


@data_app.command("import")
def data_import(
    source: Annotated[Importable, typer.Argument(help="What ROOT is.")],
    root: Annotated[Path, typer.Argument(help="VOCdevkit, or a folder with images/.")],
    out: Annotated[Path, typer.Option(help="Folder for manifest.parquet.")],
    split: Annotated[list[str] | None, typer.Option(help="voc12: split list, repeatable.")] = None,
    labels_from: Annotated[LabelsFrom, typer.Option(help="voc12 labels.")] = LabelsFrom.auto,
    trust_pickle: Annotated[
        bool, typer.Option(help="Allow cls_labels.npy, which is a pickle.")
    ] = False,
) -> None:
    """Turn a data set into a manifest; what cannot be used becomes error rows beside it."""
    from pmm_ray.sources.folder import import_folder
    from pmm_ray.sources.voc12 import import_voc12

    if source is Importable.voc12:
        splits = split or ["train_aug", "val"]
        _print_import(
            lambda: import_voc12(
                str(root),
                str(out),
                splits=splits,
                labels_from=labels_from.value,
                trust_pickle=trust_pickle,
            )
        )
    else:
        _print_import(lambda: import_folder(str(root), str(out)))


def _print_import(make: object) -> None:
    from pmm_ray.runtime.errors import EXIT_CANNOT_RUN, CannotRunError

    assert callable(make)
    try:
        result = make()
    except (CannotRunError, ValueError) as error:
        typer.echo(f"pmm: {error}", err=True)
        raise typer.Exit(EXIT_CANNOT_RUN) from error
    for name, count in result.counts.items():
        typer.echo(f"{name}: {count}")
    typer.echo(f"{result.rows} images -> {result.manifest.uri}")
    if result.errors:
        typer.echo(f"{len(result.errors)} images skipped, see errors/ beside the manifest")
