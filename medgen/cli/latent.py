"""``medgen latent``: parse, code the images, say what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, say, stdout

EPILOG = (
    "**Examples**\n\n"
    "medgen latent runs/chest-ae chest_xray/ -o latent\n\n"
    "medgen latent runs/colon-vae histology/ --conditions cancer=adenocarcinoma,benign=benign "
    "-o latent\n\n"
    "medgen latent runs/chest-ae chest_xray/ --between 00001280_004.jpg 00001362_001.jpg -o latent"
)


def latent(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Folder of a training run, or name or folder of a package."
        ),
    ],
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="Folder of images, a subfolder per label or without labels."
        ),
    ],
    output: options.Output,
    grid: Annotated[
        int, typer.Option(help="Decoded images along each side of the grid.", min=2, max=32)
    ] = 12,
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Two files of IMAGES to interpolate between; left out: a typical one of each of "
            "the first two labels.",
            metavar="FILE FILE",
        ),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="Decoded images from one to the other.", min=2, max=32)
    ] = 9,
    conditions: options.Conditions = None,
    exclude: options.Exclude = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show where images lie in a network's latent space, and what lies between them.

    Writes scatter.png (codes coloured by label; more than two numbers in the plane of their two
    largest principal components), grid.png (what the decoder draws over that plane),
    interpolation.png (from one image to another), latent.html with all of them, codes.tsv and
    run.json.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.devices import check_device_name

    check_device_name(device)
    from medgen.tasks.latent_files import PAGE, latent_files

    given = {"conditions": options.named(conditions), "exclude": options.listed(exclude)}
    facts = latent_files(
        model, images, output, {key: value for key, value in given.items() if value},
        steps=grid, images_between=between, walk_steps=steps, device=device, overwrite=overwrite,
        command=f"latent MODEL IMAGES -o OUT --grid {grid} --steps {steps}",
    )  # fmt: skip
    if json:
        print_json(facts)
        return
    from medgen.report.latent import sentences

    for line in sentences(facts):
        stdout().print(line, markup=False, soft_wrap=True)
    say(
        f"Written to {output}; {PAGE} names files and shows images: keep it where they may be kept."
    )
