"""`pmm masks`: bring your own CAMs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pmm_ray.cli.app import Address, Setting, app


@app.command()
def masks(
    images: Annotated[Path, typer.Option(help="Folder of photographs.")],
    cams: Annotated[
        Path, typer.Option(help="Folder of a cams table, .npz files, or .npy of SEAM, IRN, PMM.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for masks/ID.png and the tables.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV: image_id,labels (classes that count), or id,name (their names)."),
    ] = None,
    trust_pickle: Annotated[bool, typer.Option(help="Allow .npy, which are pickles.")] = False,
    setting: Setting = None,
    address: Address = "auto",
) -> None:
    """Make masks from CAMs that others made: CVS, CRF and PPMG only."""
    from pmm_ray.commands.masks import make_masks_of

    code = make_masks_of(
        images,
        cams,
        out,
        labels_csv=labels,
        trust_pickle=trust_pickle,
        settings=setting or (),
        address=address,
    )
    raise typer.Exit(code)
