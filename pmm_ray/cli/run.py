"""`pmm run`, `predict`, `report` and `doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from pmm_ray.cli.app import Address, Recipe, RetryErrors, RunDir, Setting, app


@app.command()
def run(
    recipe: Recipe,
    run_dir: RunDir = None,
    setting: Setting = None,
    first: Annotated[str | None, typer.Option("--from", help="First stage that may run.")] = None,
    until: Annotated[str | None, typer.Option(help="Last stage that may run.")] = None,
    only: Annotated[
        str | None, typer.Option(help="The only stage that may run, in all rounds.")
    ] = None,
    fresh: Annotated[bool, typer.Option(help="Compute the selected stages anew.")] = False,
    retry_errors: RetryErrors = False,
    address: Address = "auto",
) -> int:
    """Run a whole recipe, or go on with one that was interrupted."""
    from pmm_ray.commands.run import run_recipe

    if only and (first or until):
        raise typer.BadParameter("--only stands alone: leave out --from and --until")
    return run_recipe(
        recipe,
        run_dir=run_dir,
        settings=setting or (),
        address=address,
        first=first,
        last=until,
        only=only,
        fresh=fresh,
        retry_errors=retry_errors,
    )


@app.command()
def predict(
    source: Annotated[str, typer.Argument(help="A run folder, or a segmenter's model.pt.")],
    images: Annotated[str, typer.Option(help="Folder or uri of photographs.")],
    out: Annotated[str, typer.Option(help="Folder or uri for masks/ID.png and the tables.")],
    setting: Setting = None,
    address: Address = "auto",
) -> int:
    """Mask unlabelled photographs with a trained segmenter."""
    from pmm_ray.commands.predict import predict_folder

    return predict_folder(source, images, out, settings=setting or (), address=address)


@app.command()
def report(run_dir: Annotated[str, typer.Argument(help="A run folder.")]) -> int:
    """Write RUN/report.html and print its path."""
    from pmm_ray.commands.report import write_report

    return write_report(run_dir)


@app.command()
def watch(
    run_dir: Annotated[str, typer.Argument(help="A run folder or uri.")],
    every: Annotated[float, typer.Option(min=0, help="Seconds between two looks.")] = 30.0,
    once: Annotated[bool, typer.Option(help="Look once.")] = False,
    price_per_core_hour: Annotated[float, typer.Option(min=0, help="Of the cluster's CPUs.")] = 0.0,
    price_per_gpu_hour: Annotated[float, typer.Option(min=0, help="Of the cluster's GPUs.")] = 0.0,
) -> int:
    """Follow a run from any machine that sees its folder."""
    from pmm_ray.commands.watch import watch as follow

    return follow(
        run_dir,
        every=every,
        once=once,
        price_per_core_hour=price_per_core_hour,
        price_per_gpu_hour=price_per_gpu_hour,
    )


@app.command()
def doctor(
    cluster: Annotated[bool, typer.Option(help="Look at every node of a cluster instead.")] = False,
    run_dir: Annotated[
        str | None, typer.Option(help="With --cluster: every node must be able to write there.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE|FOLDER", help="Check a data set instead: what a run would make of it."
        ),
    ] = None,
    setting: Setting = None,
    address: Address = "auto",
) -> int:
    """Say what this machine, cluster or data set has, and what to do about what it lacks."""
    from pmm_ray.commands.doctor import diagnose, diagnose_cluster

    if cluster and data is not None:
        raise typer.BadParameter("--data and --cluster are two checks: give one")
    if data is not None:
        from pmm_ray.commands.check_data import check_data

        return check_data(data, setting or ())
    if cluster:
        return diagnose_cluster(run_dir, setting or (), address)
    return diagnose()
