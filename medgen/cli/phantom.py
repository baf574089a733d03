"""``medgen phantom``: a synthetic scan with known truth, to try things out."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, stdout


def phantom(
    output: options.Output,
    shape: Annotated[
        str, typer.Option(help="Voxels along each axis; two numbers make a 2-D image.")
    ] = "96x112x80",
    spacing: Annotated[float, typer.Option(help="Voxel size in mm.", min=0.1)] = 1.5,
    contrast: Annotated[
        Literal["t1", "t2", "flair"], typer.Option(help="Which sequence it looks like.")
    ] = "t1",
    skull: Annotated[bool, typer.Option("--skull", help="Draw skull and scalp too.")] = False,
    lesion_radius: Annotated[
        float | None, typer.Option(help="Radius of a lesion in mm; 0 for none.", min=0.0)
    ] = 8.0,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Write a synthetic brain scan and the truth about it.

    The outputs are the scan, a mask of its lesion and the labels of its tissues, all NIfTI.
    """
    configure(debug=debug)
    from medgen.tasks.phantom import write_phantom

    paths = write_phantom(
        output, _parse_shape(shape), spacing_mm=spacing, contrast=contrast, skull=skull,
        lesion_radius_mm=lesion_radius or None, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    if json:
        print_json({kind: str(path) for kind, path in paths.items()})
        return
    from rich.markup import escape

    for kind, path in paths.items():
        stdout().print(escape(f"{kind}: {path}"), soft_wrap=True)


def _parse_shape(text: str) -> tuple[int, ...]:
    parts = text.lower().replace(",", "x").split("x")
    if len(parts) not in (2, 3) or not all(part.strip().isdigit() for part in parts):
        msg = f"expected two or three numbers such as 96x112x80, got {text!r}"
        raise typer.BadParameter(msg, param_hint="--shape")
    return tuple(int(part) for part in parts)
