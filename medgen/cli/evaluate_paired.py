"""``medgen evaluate paired``: parse, compare, print the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, say, stdout

EPILOG = (
    "**Examples**\n\n"
    "medgen evaluate paired clean.nii.gz denoised.nii.gz\n\n"
    "medgen evaluate paired truth/ results/ --mask holes/ -o evaluation\n\n"
    "medgen evaluate paired truth/ network=results/ cubic=baseline/ -o evaluation"
)


def paired(
    reference: Annotated[
        Path, typer.Argument(metavar="REFERENCE", help="The truth: an image, or a folder of them.")
    ],
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULT",
            help="What is compared with it: an image or a folder, of each method one; PATH or "
            "NAME=PATH. Files belong together if their names do, or begin so.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for table.md, subjects.tsv, evaluation.json, report.html and run.json; "
            "left out: the table is only printed.",
            metavar="OUT",
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(help="Compare inside this mask only; or a folder of masks, named alike."),
    ] = None,
    data_range: Annotated[
        float | None,
        typer.Option(
            help="Largest minus smallest possible value, for PSNR and SSIM. Left out: 255 for "
            "pictures of 8 bit, else that of each reference.",
            metavar="NUMBER",
        ),
    ] = None,
    rescale: Annotated[
        bool,
        typer.Option(
            "--rescale",
            metavar="",
            help="First make the 1st and 99th percentile of each image 0 and 1, for results whose "
            "values have no unit.",
        ),
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="Which files of RESULT folders are meant, such as '*_denoised.nii.gz'.",
            metavar="PATTERN",
        ),
    ] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression whose first (...) is the patient in a reference's name. Left "
            "out: every image is a patient.",
            metavar="REGEX",
        ),
    ] = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure how near results are to their references, also inside a mask only.

    MAE, MSE, PSNR, SSIM and MS-SSIM of every subject, their means with 95 % bootstrap intervals
    and, between every two methods, Wilcoxon's signed-rank test.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.report.paired import markdown
    from medgen.tasks.evaluate_paired import Options, evaluate_paired

    result = evaluate_paired(
        reference,
        _named(results),
        output,
        options=Options(mask, data_range, rescale, only, group_pattern, seed),
        overwrite=overwrite,
        command=f"evaluate paired REFERENCE RESULT --seed {seed}",
    )
    if json:
        print_json(result)
        return
    stdout().print(markdown(result), markup=False, soft_wrap=True, end="")
    if output is not None:
        say(f"Written to {output}; report.html shows the images: keep it where they may be kept.")


def _named(results: list[str]) -> dict[str, Path]:
    """``NAME=PATH`` or ``PATH``, of which the last part is the name."""
    from medgen.errors import InputError

    found: dict[str, Path] = {}
    for text in results:
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            name, path = Path(text).name or Path(text).resolve().name, text
        if not name or not path:
            raise InputError(f"RESULT must be PATH or NAME=PATH, got {text!r}")
        if name in found:
            msg = f"two results have the name {name}"
            raise InputError(msg, "Name them: first=PATH second=PATH.")
        found[name] = Path(path)
    return found
