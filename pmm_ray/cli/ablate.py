"""`pmm ablate`: the paper's tables and parameter sweeps."""

from __future__ import annotations

from typing import Annotated

import typer

from pmm_ray.cli.app import Address, Recipe, RetryErrors, RunDir, Setting, app


@app.command()
def ablate(
    recipe: Recipe,
    table: Annotated[int | None, typer.Option(min=1, max=6, help="A table of the paper.")] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V,...",
            help="Score every combination of masks.alpha, masks.smoothing, masks.threshold, with "
            "or without ground truth, and lay the masks side by side in the report.",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Images used at most; a table: all, a sweep: 100.")
    ] = None,
    run_dir: RunDir = None,
    setting: Setting = None,
    retry_errors: RetryErrors = False,
    address: Address = "auto",
) -> int:
    """Make a table of the paper on your data, or search the mask parameters."""
    from pmm_ray.commands.ablate import Ablation, run_sweep, run_table

    if (table is None) == (not sweep):
        raise typer.BadParameter("give either --table N or --sweep KEY=V,V,...")
    request = Ablation(recipe, run_dir, tuple(setting or ()), address, images, retry_errors)
    return run_sweep(request, sweep or ()) if table is None else run_table(table, request)
