"""`pmm refine`: a joint CRF on other programs' scores."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pmm_ray.cli.app import Address, Setting, app
from pmm_ray.cli.masks import (
    BackgroundChannel,
    ClassIds,
    FirstClass,
    Key,
    Layout,
    Normalize,
    TrustPickle,
)


@app.command()
def refine(
    scores: Annotated[
        str, typer.Option(help="Folder of logits, probabilities, CRF dictionaries, or CAMs.")
    ],
    images: Annotated[str, typer.Option(help="Folder or uri of photographs.")],
    out: Annotated[str, typer.Option(help="Folder or uri for masks/ID.png and the tables.")],
    preset: Annotated[
        str | None,
        typer.Option(
            help="Whose CRF: deeplab, toco, weclip, excel, mctformer, weaktr, cosa; "
            "irn, seam, clip-es, more, toco-cam take CAMs. Default: predict.crf."
        ),
    ] = None,
    ground_truth: Annotated[
        str | None, typer.Option(help="Masks to score against, on the way.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also score before the CRF.")] = False,
    confidence: Annotated[
        float | None, typer.Option(help="Below this posterior a pixel becomes 255.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="A or A,B: of the background; where two disagree, 255.")
    ] = None,
    label_space: Annotated[
        str | None, typer.Option(help="voc12, coco14, or a file of class names.")
    ] = None,
    truth_ids: Annotated[
        Literal["auto", "contiguous", "dataset"],
        typer.Option(help="Values of the truth: 0..C, or the data set's own ids."),
    ] = "auto",
    values: Annotated[
        Literal["auto", "logits", "probabilities"], typer.Option(help="What the scores are.")
    ] = "auto",
    trust_pickle: TrustPickle = False,
    layout: Layout = None,
    key: Key = None,
    first_class: FirstClass = None,
    background_channel: BackgroundChannel = False,
    normalize: Normalize = None,
    class_ids: ClassIds = "auto",
    setting: Setting = None,
    address: Address = "auto",
) -> int:
    """Refine scores of other programs to masks by a joint CRF; score them on the way."""
    from pmm_ray.commands.refine import refine_folder
    from pmm_ray.sources.cams.said import Said

    return refine_folder(
        scores,
        images,
        out,
        preset=preset,
        ground_truth=ground_truth,
        compare=compare,
        confidence=confidence,
        strengths=strengths,
        truth_ids=truth_ids,
        said=Said(
            layout=layout,
            key=key,
            first_class=first_class,
            background_channel=background_channel,
            values=values,
            normalize=normalize,
            class_ids=class_ids,
            label_space=label_space,
            trust_pickle=trust_pickle,
        ),
        settings=setting or (),
        address=address,
    )
