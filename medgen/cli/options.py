"""Options that several commands share, so that they read and behave the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

COMMON = "Common options"
READING = "How the images are read"

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
Conditions = Annotated[
    str | None,
    typer.Option(
        help="Name of each condition and its subfolder; left out: every subfolder is one.",
        metavar="NAME=SUBFOLDER,...",
        rich_help_panel=READING,
    ),
]
GroupPattern = Annotated[
    str | None,
    typer.Option(
        help="Regular expression whose first (...) is the patient in a file's name, if there is no "
        "groups.csv.",
        metavar="REGEX",
        rich_help_panel=READING,
    ),
]
Exclude = Annotated[
    str | None,
    typer.Option(
        help="Files to leave out, by name without ending.",
        metavar="NAMES",
        rich_help_panel=READING,
    ),
]
# Of studies that compare methods.
SuiteMethods = Annotated[
    str | None, typer.Option(help="Methods of the suite, with commas between; all if left out.")
]
Seeds = Annotated[int, typer.Option(help="Trainings of each method.", min=1)]
MinutesPerMethod = Annotated[
    float | None, typer.Option(help="Length of each training in minutes.", min=0.0)
]
ResumeStudy = Annotated[
    bool, typer.Option("--resume", metavar="", help="Go on with an interrupted study in OUT.")
]


def suite_methods(text: str | None) -> tuple[str, ...]:
    """The names given; one that is left empty stays, to be refused as unknown."""
    return tuple(name.strip() for name in text.split(",")) if text is not None else ()


def one_length(minutes: float | None, steps: int | None) -> None:
    """Refuse two lengths of a training, or none at all.

    Raises:
        InputError: Both are given, or 0 minutes.
    """
    from medgen.errors import InputError

    if minutes is not None and steps is not None:
        raise InputError("--steps and --minutes-per-method exclude each other", "Give one of them.")
    if minutes == 0:
        raise InputError("--minutes-per-method must be more than 0")


def named(text: str | None) -> dict[str, str] | None:
    """``cancer=adenocarcinoma,benign=benign`` as a dictionary.

    Raises:
        InputError: It is no such list.
    """
    from medgen.errors import InputError

    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    if not parts or not all(name.strip() and sub.strip() for name, _, sub in parts):
        raise InputError(f"--conditions must be NAME=SUBFOLDER,..., got {text!r}")
    return {name.strip(): sub.strip() for name, _, sub in parts}


def listed(text: str | None) -> tuple[str, ...]:
    """``a,b`` as a tuple; () for None."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())
