"""`pmm plan`: what a run will take, before it is run."""

from __future__ import annotations

from typing import Annotated

import typer

from pmm_ray.cli.app import Address, Recipe, RunDir, Setting, app


@app.command()
def plan(
    recipe: Recipe,
    sample: Annotated[int, typer.Option(min=2, help="Images to time.")] = 20,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Also predict for a cluster with so many CPUs.")
    ] = None,
    price: Annotated[
        float | None,
        typer.Option("--price-per-core-hour", min=0, help="Of one core, in your currency."),
    ] = None,
    run_dir: RunDir = None,
    setting: Setting = None,
    address: Address = "auto",
) -> int:
    """Time a few images and training steps; print images, bytes, hours and cost of every stage."""
    from pmm_ray.commands.plan import plan_recipe

    return plan_recipe(
        recipe,
        run_dir=run_dir,
        settings=setting or (),
        address=address,
        sample=sample,
        cores=cores,
        price=price,
    )
