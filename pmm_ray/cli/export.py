"""`pmm export`: a run's masks in formats that other programs read."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pmm_ray.cli.app import app


@app.command()
def export(
    run_dir: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder or uri of a run, or of pmm predict.")
    ],
    out: Annotated[str, typer.Argument(help="Folder or uri, new, empty or of an export.")],
    name: Annotated[
        Literal["voc", "coco", "mmseg", "yolo", "hf"],
        typer.Option(
            "--format",
            help="Palette PNG tree, COCO RLE JSON, mmseg config and data, YOLO segmentation, or "
            "Parquet of Hugging Face.",
        ),
    ],
    masks: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Whose masks. Default: each split's last ones."),
    ] = None,
) -> int:
    """Write a run's masks for other programs: VOC, COCO, mmsegmentation, YOLO, Hugging Face."""
    from pmm_ray.commands.export import export_run

    return export_run(run_dir, out, name, masks)
