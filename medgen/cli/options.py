"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

COMMON = "Common options"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Name or folder of a model; see **medgen models list**.",
    ),
]
RestorationModel = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="Name or folder of a model, see **medgen models list**; or a method without training.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto (first CUDA GPU, else CPU), cpu, cuda, cuda:N or mps.", metavar="DEVICE"
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", min=0, metavar="N")]
Frame = Annotated[
    int | None,
    typer.Option(help="Which image of a 4-D file to use, from 0.", min=0, metavar="N"),
]
Series = Annotated[
    str | None,
    typer.Option(
        help="Which DICOM series of a folder: its number, UID or description.", metavar="SERIES"
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", metavar="", help="Replace outputs of an earlier run.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", metavar="", help="Say what would be done, and do nothing.")
]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print the result as JSON on stdout.")
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", metavar="", help="Print only results and errors.", rich_help_panel=COMMON
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", metavar="", help="Print more.", rich_help_panel=COMMON)
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", metavar="", help="Show the traceback of an error.", rich_help_panel=COMMON
    ),
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", help="Folder for the outputs; made if absent.", metavar="OUT"),
]
