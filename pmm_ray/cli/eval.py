"""`pmm eval`: masks against ground truth."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pmm_ray.cli.app import Address, Setting, app

Ids = Literal["auto", "contiguous", "dataset"]


@app.command("eval")
def evaluate(
    masks: Annotated[
        str, typer.Argument(help="A stage's folder, a masks table, or a folder of PNG masks.")
    ],
    ground_truth: Annotated[str, typer.Option(help="The same, of the ground truth.")],
    label_space: Annotated[
        str | None,
        typer.Option(help="voc12, coco14, or a file of class names. Default: the manifest's."),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="Folder for scores.json and errors/. Default: in runs/.")
    ] = None,
    images: Annotated[
        str | None, typer.Option("--list", help="File of ids that count, one a line.")
    ] = None,
    mask_ids: Annotated[
        Ids, typer.Option(help="Values of the masks: 0..C, or the data set's own ids.")
    ] = "auto",
    truth_ids: Annotated[Ids, typer.Option(help="The same, of the ground truth.")] = "auto",
    setting: Setting = None,
    address: Address = "auto",
) -> int:
    """Score masks: mIoU and the IoU of each class."""
    from pmm_ray.commands.eval import score_folder

    return score_folder(
        masks,
        ground_truth,
        out=out,
        label_space=label_space,
        images=images,
        mask_ids=mask_ids,
        truth_ids=truth_ids,
        settings=setting or (),
        address=address,
    )
