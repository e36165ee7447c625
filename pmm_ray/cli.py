"""The `pmm` command: parses, calls, prints. Whatever is slow to import is imported where used."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Pixel masks from image-level labels, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Make or import a data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe's key.")
]
RunDir = Annotated[str | None, typer.Option(help="Run folder or uri. Default: runs/NAME.")]
Address = Annotated[
    str,
    typer.Option(help="auto: the cluster of RAY_ADDRESS, else a Ray of its own; local; or a host."),
]


class LabelsFrom(StrEnum):
    """Where VOC12's image-level labels come from."""

    auto = "auto"
    cls_labels = "cls_labels"
    xml = "xml"
    masks = "masks"


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A YAML file such as recipes/shapes.yaml.")],
    run_dir: RunDir = None,
    setting: Setting = None,
    first: Annotated[str | None, typer.Option("--from", help="First stage that may run.")] = None,
    until: Annotated[str | None, typer.Option(help="Last stage that may run.")] = None,
    only: Annotated[str | None, typer.Option(help="The only stages that may run.")] = None,
    fresh: Annotated[bool, typer.Option(help="Compute the selected stages anew.")] = False,
    retry_errors: Annotated[bool, typer.Option(help="Run images with error rows again.")] = False,
    address: Address = "auto",
) -> None:
    """Run a whole recipe, or go on with one that was interrupted."""
    from pmm_ray.pipeline import run_recipe

    if only and (first or until):
        raise typer.BadParameter("--only stands alone: leave out --from and --until")
    code = run_recipe(
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
    raise typer.Exit(code)


@app.command()
def predict(
    source: Annotated[str, typer.Argument(help="A run folder, or a segmenter's model.pt.")],
    images: Annotated[Path, typer.Option(help="Folder of photographs.")],
    out: Annotated[Path, typer.Option(help="Folder for masks/ID.png and the tables.")],
    setting: Setting = None,
    address: Address = "auto",
) -> None:
    """Mask unlabelled photographs with a trained segmenter."""
    from pmm_ray.predict import predict_folder

    raise typer.Exit(predict_folder(source, images, out, settings=setting or (), address=address))


@app.command()
def report(run_dir: Annotated[str, typer.Argument(help="A run folder.")]) -> None:
    """Write RUN/report.html and print its path."""
    from pmm_ray.report import build_report

    typer.echo(build_report(run_dir))


@app.command()
def doctor() -> None:
    """Say what this machine has, and what to do about what it lacks."""
    from pmm_ray.runtime.doctor import diagnose

    checks = diagnose()
    width = max(len(check.name) for check in checks)
    for check in checks:
        typer.echo(f"{'ok ' if check.ok else '!! '} {check.name:{width}}  {check.value}")
        if check.advice:
            typer.echo(f"    {'':{width}}  -> {check.advice}")
    raise typer.Exit(1 if any(check.fatal and not check.ok for check in checks) else 0)


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


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
