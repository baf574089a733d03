"""``medgen deidentify``: parse, de-identify, print what was done and what was set aside."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medgen.cli import options
from medgen.cli.console import VERBOSE, configure, print_json, progress_bar, say, stdout

if TYPE_CHECKING:
    from medgen.tasks.deidentify import Deidentification

EPILOG = (
    "**Examples**\n\n"
    "medgen deidentify archive/ -o clean --dry-run\n\n"
    "medgen deidentify archive/ -o clean --key-file project.key --new-key\n\n"
    "medgen deidentify pet/ -o clean --key-file project.key --shift-dates "
    "--keep-patient-characteristics\n\n"
    "medgen deidentify study.zip -o clean --clean-descriptors --json"
)
KEEP = "What to keep (PS3.15 options)"
SOME_DAMAGED = 3


def _flag(name: str, text: str, panel: str | None = KEEP) -> Any:
    return typer.Option(name, metavar="", help=text, rich_help_panel=panel)


def deidentify(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="DICOM file, folder (with zips in it) or zip.")
    ],
    output: options.Output,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the secret key; the same key links deliveries. Default: random.",
            metavar="FILE",
        ),
    ] = None,
    new_key: Annotated[bool, _flag("--new-key", "Make the key file first.", None)] = False,
    shift_dates: Annotated[
        bool, _flag("--shift-dates", "Move all dates of a patient by one secret number of days.")
    ] = False,
    keep_dates: Annotated[bool, _flag("--keep-dates", "Keep dates and times.")] = False,
    keep_patient: Annotated[
        bool,
        _flag("--keep-patient-characteristics", "Keep age, sex, size, weight (a PET needs them)."),
    ] = False,
    clean_descriptors: Annotated[
        bool, _flag("--clean-descriptors", "Keep descriptions made of known imaging words only.")
    ] = False,
    keep_safe_private: Annotated[
        bool, _flag("--keep-safe-private", "Keep private numbers such as b-values.")
    ] = False,
    keep_device: Annotated[
        bool, _flag("--keep-device", "Keep what identifies the device.")
    ] = False,
    keep_institution: Annotated[
        bool, _flag("--keep-institution", "Keep what identifies the institution.")
    ] = False,
    keep_uids: Annotated[bool, _flag("--keep-uids", "Keep UIDs.")] = False,
    allow_burned_in: Annotated[
        bool, _flag("--allow-burned-in", "Write pictures that may show text too.", None)
    ] = False,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Take out of DICOM objects what identifies the patient.

    Follows the Basic Application Level Confidentiality Profile of DICOM PS3.15. Pixels are not
    changed: pictures in which text may be burned in, reports and documents are set aside. Writes
    one tree of new names, deidentification.json and .tsv (what was removed) and run.json.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    if shift_dates and keep_dates:
        raise typer.BadParameter("choose one of --shift-dates and --keep-dates")
    if new_key and key_file is None:
        raise typer.BadParameter("--new-key needs --key-file FILE", param_hint="--new-key")
    from medgen.tasks.deidentify import Profile, check_folders
    from medgen.tasks.deidentify import deidentify as run

    profile = Profile(
        dates="shift" if shift_dates else "keep" if keep_dates else "remove",
        keep_uids=keep_uids, keep_device=keep_device, keep_institution=keep_institution,
        keep_patient_characteristics=keep_patient, clean_descriptors=clean_descriptors,
        keep_safe_private=keep_safe_private, allow_burned_in=allow_burned_in,
    )  # fmt: skip
    check_folders(source, output, key_file=key_file, overwrite=overwrite)
    key = _key(key_file, new_key, dry_run)
    with progress_bar("de-identifying") as progress:
        result = run(
            source, output, profile=profile, key=key, overwrite=overwrite, dry_run=dry_run,
            progress=progress,
        )  # fmt: skip
    if json:
        print_json(result.report)
    else:
        _print_result(result, output, dry_run)
    if result.damaged:
        raise typer.Exit(SOME_DAMAGED)


def _key(file: Path | None, new: bool, dry_run: bool) -> bytes | None:
    from medgen.io.deidentify import new_key, random_key, read_key

    if file is None:
        return None
    if new:
        return random_key() if dry_run else new_key(file)
    return read_key(file)


def _print_result(result: Deidentification, output: Path, dry_run: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    report, console = result.report, stdout()
    console.print(f"Profile: {'; '.join(code['meaning'] for code in report['codes'])}")
    say(f"[dim]{report['key']}[/]")
    if report["set_aside"]:
        table = Table("objects", "modality", "set aside because", title_justify="left")
        for entry in report["set_aside"]:
            reason = f"[red]{escape(entry['reason'])}[/]"
            reason = reason if entry["damaged"] else escape(entry["reason"])
            table.add_row(str(entry["objects"]), escape(entry["modality"]), reason)
        console.print(table)
    for reason, count in report["allowed_although"].items():
        say(f"[yellow]Note:[/] {count} written although: {escape(reason)}")
    for entry in report["attributes"]:
        say(f"[dim]{entry['done']} {entry['count']} x {entry['attribute']}[/]", level=VERBOSE)
    verb = "would be written" if dry_run else "written"
    parts = [f"{result.written} {verb}", f"{result.set_aside} set aside"]
    parts += [f"{result.damaged} could not be treated"] if result.damaged else []
    parts += [f"{report['foreign']} files are not DICOM"] if report["foreign"] else []
    console.print(f"Objects: {', '.join(parts)}")
    if not dry_run:
        where = escape(str(output))
        console.print(f"Written to {where}; see deidentification.json there", soft_wrap=True)
    for note in report["not_done"][:2]:
        say(f"[dim]{note}[/]")
