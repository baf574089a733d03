"""``medgen calibrate``: parse, measure normal scans or a batch, print what it means."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, progress_bar, say, stdout
from medgen.errors import InputError

if TYPE_CHECKING:
    from medgen.tasks.calibrate import Calibrated
    from medgen.tasks.drift import DriftReport

EPILOG = (
    "**Examples**\n\n"
    "medgen calibrate --controls healthy/ --model brain-mr -o models/brain-mr-our-site\n\n"
    "medgen calibrate --controls healthy/ --model brain-mr -o models/brain-mr-our-site "
    "--false-positive-rate 0.1 --group-pattern '^([^_]+)_'\n\n"
    "medgen calibrate --drift this_month/ --model models/brain-mr-our-site -o drift\n\n"
    "medgen calibrate --drift this_month/ --model models/brain-mr-our-site --json | jq .verdict"
)


def calibrate(
    controls: Annotated[
        Path | None,
        typer.Option(
            help="Folder of your own normal scans: they give a new package its reference.",
            metavar="FOLDER",
        ),
    ] = None,
    drift: Annotated[
        Path | None,
        typer.Option(
            help="Or: folder of scans to compare with the model's normal scans.", metavar="FOLDER"
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Model package, by name or folder. **auto**: with --controls the one that takes "
            "the first scan.",
            metavar="NAME",
        ),
    ] = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="With --controls: the new package, whose last part is its name. With --drift: "
            "folder for drift.tsv, drift.json, drift.png and run.json; left out: only printed.",
            metavar="OUT",
        ),
    ] = None,
    false_positive_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of normal people that may show any finding; sets the threshold. It takes "
            "1/RATE - 1 normal people. Default: 0.05.",
            metavar="RATE",
        ),
    ] = None,
    target_false_findings: Annotated[
        float | None,
        typer.Option(
            help="Set the threshold by the findings allowed per normal scan instead, on average.",
            metavar="NUMBER",
        ),
    ] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression whose first (...) is the person in a file's name. Left out: "
            "groups.csv, sub-... (BIDS) or the DICOM patient says it; else every file is another "
            "person's.",
            metavar="REGEX",
        ),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            help="With --drift: chance of calling drift where there is none. Default: 0.01.",
            metavar="P",
            min=0.0,
            max=1.0,
        ),
    ] = None,
    device: options.Device = "auto",
    max_memory: Annotated[
        float | None,
        typer.Option(
            help="Skip scans that need more memory (GB). Default: 80 % of what is free, at most "
            "16.",
            metavar="GB",
            min=0.0,
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Give a detector a reference of your own normal scans, or see whether scans have drifted.

    With --controls, the model scores your normal scans, and a new package that names its parent
    holds what a scan score and the threshold then mean. With --drift, the scores of a batch are
    compared with those of the normal scans.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    if level is not None and not 0 < level < 1:
        raise InputError(f"--level must lie between 0 and 1, got {level:g}")
    if target_false_findings is not None and not math.isfinite(target_false_findings):
        raise InputError(f"--target-false-findings must be a number, got {target_false_findings}")
    if (controls is None) == (drift is None):
        hint = "--controls makes a new package; --drift compares scans with one."
        raise InputError("give either --controls FOLDER or --drift FOLDER", hint)
    if controls is not None:
        _calibrate(
            controls, model, output, false_positive_rate, target_false_findings, group_pattern,
            level, device, max_memory, overwrite, json,
        )  # fmt: skip
        return
    if false_positive_rate is not None or target_false_findings is not None:
        raise InputError("the threshold of a model is set with --controls, not with --drift")
    assert drift is not None  # one of the two is given
    from medgen.tasks.choose_model import AUTO
    from medgen.tasks.drift import NAMES, drift_check
    from medgen.tasks.output_folder import refuse_inside, refuse_wrong_target

    if model == AUTO:
        hint = "Name it with --model: --drift compares with the normal scans of one model."
        raise InputError("--drift needs the model that the scans are compared with", hint)
    if output is not None:
        refuse_inside(output, drift)
        refuse_wrong_target(output, NAMES, overwrite)
    with progress_bar("scoring") as progress:
        found = drift_check(
            drift, model, group_pattern=group_pattern, level=level, device=device,
            max_memory_gb=max_memory, progress=progress,
        )  # fmt: skip
    if output is not None:
        name = found.package.manifest.name
        found.save(output, overwrite=overwrite, command=f"calibrate --drift FOLDER --model {name}")
    if json:
        print_json(found.summary())
    else:
        _print_drift(found, output)


def _calibrate(
    controls: Path,
    model: str,
    output: Path | None,
    rate: float | None,
    findings: float | None,
    group_pattern: str | None,
    level: float | None,
    device: str,
    max_memory: float | None,
    overwrite: bool,
    json: bool,
) -> None:
    from medgen.tasks.calibrate import calibrate as measure
    from medgen.tasks.output_folder import refuse_inside

    if output is None:
        raise InputError("the new package needs a name", "Give it with -o FOLDER.")
    if level is not None:
        raise InputError("--level belongs to --drift")
    refuse_inside(output, controls)
    with progress_bar("scoring") as progress:
        made = measure(
            controls, model, output, false_positive_rate=rate, target_false_findings=findings,
            group_pattern=group_pattern, device=device, max_memory_gb=max_memory,
            overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if json:
        print_json(_as_json(made))
    else:
        _print_calibrated(made)


def _as_json(made: Calibrated) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "package": str(made.package.folder),
        "package_sha256": made.package.sha256,
        "parent": made.package.manifest.model_dump(mode="json")["parent"],
        "threshold": made.calibration.threshold,
        "threshold_rule": made.calibration.threshold_rule,
        "shift": None
        if made.shift is None
        else {"verdict": made.shift.verdict, "p_value": made.shift.p_value, **asdict(made.shift)},
        "scans": [
            {"scan": name, "person": person, "score": score} for name, person, score in made.scores
        ],
        "skipped": made.skipped,
    }


def _print_calibrated(made: Calibrated, most: int = 3) -> None:
    from rich.markup import escape

    from medgen.tasks.calibrate import shift_sentence

    _say_notes(made.skipped, made.fallbacks)
    console = stdout()
    parent = made.package.manifest.parent
    assert parent is not None  # calibrate names it
    name = f"{made.package.manifest.name}, calibrated from {parent.name} {parent.version}"
    console.print(escape(f"{name}: {made.package.folder}"), soft_wrap=True)
    console.print(escape(f"Threshold {made.calibration.threshold_rule}"))
    if made.shift is not None:
        console.print(escape(shift_sentence(made.shift)))
    highest = sorted(made.scores, key=lambda row: -row[2])[:most]
    listed = ", ".join(f"{name} ({score:.3f})" for name, _, score in highest)
    say(escape(f"Highest scan scores, to be looked at once more: {listed}"))


def _print_drift(found: DriftReport, output: Path | None) -> None:
    from rich.markup import escape

    _say_notes(found.skipped, found.fallbacks)
    stdout().print(escape(found.sentence))
    if output is not None:
        say(escape(f"Written to {output}"))


def _say_notes(skipped: dict[str, str], fallbacks: list[str]) -> None:
    from rich.markup import escape

    for name, reason in skipped.items():
        say(f"[yellow]Skipped[/] {escape(name)}: {escape(reason)}")
    for fallback in fallbacks:
        say(f"[yellow]Note:[/] {escape(fallback)}")
