"""`pmm masks`: bring your own CAMs."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pmm_ray.cli.app import Address, Setting, app

TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Allow .npy dictionaries, which are pickles.")
]
Layout = Annotated[
    str | None, typer.Option(help="What wrote the files: irn, seam, clip-es ... Default: told.")
]
Key = Annotated[str | None, typer.Option(help="Name of the arrays in a dictionary or archive.")]
FirstClass = Annotated[
    int | None, typer.Option(min=0, max=1, help="Number of the first class in the files.")
]
BackgroundChannel = Annotated[
    bool, typer.Option("--background-channel", help="Class 0 of the files is the background.")
]
Normalize = Annotated[
    Literal["max", "minmax", "none"] | None, typer.Option(help="Bring each map to 0..1.")
]
ClassIds = Annotated[
    Literal["auto", "contiguous", "coco90", "dataset"],
    typer.Option(help="Classes without gaps, COCO's 90 ids, or the values of the class list."),
]


@app.command()
def masks(
    images: Annotated[str, typer.Option(help="Folder or uri of photographs.")],
    cams: Annotated[
        str, typer.Option(help="Folder of a cams table, or of .npz, .npy or ID_k.png files.")
    ],
    out: Annotated[str, typer.Option(help="Folder or uri for masks/ID.png and the tables.")],
    labels: Annotated[
        str | None,
        typer.Option(help="CSV: image_id,labels (classes that count), or id,name (their names)."),
    ] = None,
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
    """Make masks from CAMs that others made: CVS, CRF and PPMG only."""
    from pmm_ray.commands.masks import make_masks_of
    from pmm_ray.sources.cams.said import Said

    return make_masks_of(
        images,
        cams,
        out,
        labels_csv=labels,
        said=Said(
            layout=layout,
            key=key,
            first_class=first_class,
            background_channel=background_channel,
            normalize=normalize,
            class_ids=class_ids,
            trust_pickle=trust_pickle,
        ),
        settings=setting or (),
        address=address,
    )
