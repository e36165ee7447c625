"""The `pmm` command's root and the options that commands share."""

from __future__ import annotations

from typing import Annotated

import typer


def _exit(code: int) -> None:
    """Ends the process with what a command returns."""
    raise typer.Exit(code)


app = typer.Typer(
    help="Pixel masks from image-level labels, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    result_callback=_exit,
)
data_app = typer.Typer(help="Make or import a data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Recipe = Annotated[str, typer.Argument(help="Path or uri of a YAML file: recipes/shapes.yaml.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe's key.")
]
RunDir = Annotated[str | None, typer.Option(help="Run folder or uri. Default: runs/NAME.")]
RetryErrors = Annotated[
    bool,
    typer.Option(
        help="Run images with error rows again; a training or import that has some, anew."
    ),
]
Address = Annotated[
    str,
    typer.Option(help="auto: the cluster of RAY_ADDRESS, else a Ray of its own; local; or a host."),
]
