"""``medgen detect-anomalies``: parse, call the task, print what was found and where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medgen.cli import options
from medgen.cli.console import VERBOSE, configure, print_json, progress_bar, say, stdout

if TYPE_CHECKING:
    from medgen.package import ModelPackage
    from medgen.tasks.detect import Detection

EPILOG = (
    "**Examples**\n\n"
    "medgen detect-anomalies sub-01_FLAIR.nii.gz -o out\n\n"
    "medgen detect-anomalies dicom_folder/ -o out --series 2\n\n"
    "medgen detect-anomalies dicom_folder/ -o out --dicom-out seg,sr\n\n"
    "medgen detect-anomalies scan.nii.gz -o out --compare brain-mr intensity\n\n"
    "medgen detect-anomalies bold.nii.gz -o out --frame 0 --model intensity\n\n"
    "medgen detect-anomalies scan.nii.gz -o out --json -q | jq .scan_score"
)


def detect_anomalies(
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="NIfTI, PNG/JPEG/TIFF, DICOM file, folder or zip."),
    ],
    output: options.Output,
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Name or folder of a model, see **medgen models list**; auto: medgen's own for "
            "this kind of image.",
        ),
    ] = "auto",
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Two models instead of one, side by side in one report.", metavar="MODEL MODEL"
        ),
    ] = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    frame: options.Frame = None,
    series: options.Series = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Map value from which a voxel counts, instead of the calibrated one."),
    ] = None,
    max_memory: Annotated[
        float | None,
        typer.Option(
            help="Most memory to use in GB. Default: 80 % of what is free, at most 16.",
            metavar="GB",
            min=0.0,
        ),
    ] = None,
    report: Annotated[
        bool,
        typer.Option("--report/--no-report", metavar="", help="Draw overview.png and report.html."),
    ] = True,
    dicom_out: Annotated[
        str | None,
        typer.Option(
            help="Objects for a PACS, separated by commas: seg (mask), pmap (map), sr (report of "
            "the findings), sc (overview). The input must be DICOM.",
            metavar="KINDS",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show where a scan departs from normal.

    Writes an anomaly map, a mask and, if the model makes one, the restored scan on the grid of
    the input; the findings as a table; run.json; and a report to look at. With --compare, the same
    for each model in a folder of its own, and compare.html. Nothing is written unless all of it
    succeeds.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen import io
    from medgen.devices import check_device_name
    from medgen.package import load_package
    from medgen.tasks.choose_model import AUTO, choose_detector
    from medgen.tasks.detect import detect_anomalies as detect
    from medgen.tasks.detect_dicom import dicom_kinds
    from medgen.tasks.detect_files import findings_summary, output_names, write_files
    from medgen.tasks.output_folder import output_folder, refuse_inside

    check_device_name(device)
    refuse_inside(output, source)
    objects = dicom_kinds(dicom_out or "")
    if compare is not None:
        refuse_alone = {
            "--model": model != AUTO,
            "--threshold": threshold is not None,
            "--dicom-out": bool(objects),
            "--dry-run": dry_run,
        }
        _compare(
            source, output, compare, refuse_alone, report=report, overwrite=overwrite, json=json,
            device=device, seed=seed, max_memory_gb=max_memory, frame=frame, series=series,
        )  # fmt: skip
        return
    names = output_names([str(source)], report=report, dicom=objects)
    if model == AUTO:
        model, why = choose_detector(io.preview(source, frame=frame, series=series))
        say(why)
    package = load_package(model, "detect-anomalies")
    if dry_run:
        facts = _plan(source, package, frame, series, max_memory, bool(objects))
        _say_plan(source, output, names, package, facts, json)
        return
    with output_folder(output, list(names.values()), overwrite=overwrite) as draft:
        with progress_bar(f"{package.manifest.name}") as progress:
            detection = detect(
                source, package.folder, device=device, seed=seed, max_memory_gb=max_memory,
                threshold=threshold, frame=frame, series=series, dicom_out=objects,
                progress=progress,
            )  # fmt: skip
        objects_named = ",".join(objects) or None
        command = _command(
            package, device, seed, frame, series, threshold, max_memory, objects_named, report
        )
        kinds = write_files(detection, draft, report=report, dicom=objects, command=command)
    paths = {kind: str(output / names[kind]) for kind in kinds}
    if json:
        print_json({**findings_summary(detection), "outputs": paths})
    else:
        _print_result(detection, output, paths)


def _compare(
    source: Path,
    output: Path,
    models: tuple[str, str],
    refused: dict[str, bool],
    *,
    report: bool,
    overwrite: bool,
    json: bool,
    **settings: Any,
) -> None:
    """Two models side by side."""
    from rich.markup import escape

    from medgen.errors import InputError
    from medgen.package import load_package
    from medgen.report.pair import sentences
    from medgen.tasks.detect_compare import compare_models, output_names, told_apart
    from medgen.tasks.output_folder import output_folder

    for option, given in refused.items():
        if given:
            msg = f"{option} belongs to one model, not to a comparison"
            raise InputError(msg, "Leave it out, or run the models one by one.")
    first, second = (load_package(model, "detect-anomalies") for model in models)
    written = output_names(told_apart(first, second))
    with output_folder(output, written, overwrite=overwrite) as draft:
        with progress_bar(" and ".join(models)) as progress:
            found = compare_models(source, (first, second), progress=progress, **settings)
        found.write(draft, report=report)
    if json:
        print_json(found.summary())
        return
    console = stdout()
    for name, one in zip(found.names, (found.first, found.second), strict=True):
        p_value = "not calibrated" if one.p_value is None else f"p = {one.p_value:.2g}"
        number = len(one.findings)
        findings = f"{number} finding{'' if number == 1 else 's'}"
        text = f"{name}: scan score {one.score:.3f} ({p_value}), {findings}"
        console.print(escape(text), soft_wrap=True)
    for sentence in sentences(found.names, found.agreement):
        console.print(escape(sentence), soft_wrap=True)
    if report:
        console.print(f"Look at [b]{escape(str(output / 'compare.html'))}[/]", soft_wrap=True)


def _command(package: ModelPackage, *values: object) -> str:
    """The verb and its options without paths, which may hold a name."""
    names = ("device", "seed", "frame", "series", "threshold", "max-memory", "dicom-out")
    *others, report = values
    words = [
        f"--{name} {value}" for name, value in zip(names, others, strict=True) if value is not None
    ]
    words += [] if report else ["--no-report"]
    return f"detect-anomalies INPUT -o OUT --model {package.manifest.name} " + " ".join(words)


def _print_result(detection: Detection, output: Path, paths: dict[str, str]) -> None:
    """What was found, in a few lines; only the findings table and paths go to stdout."""
    from rich.markup import escape

    for fallback in detection.fallbacks:
        say(f"[yellow]Note:[/] {escape(fallback)}")
    for note in detection.notes:
        say(f"[dim]{escape(note)}[/]", level=VERBOSE)
    for step, seconds in detection.timings.items():
        say(f"[dim]{step}: {seconds:.2f} s[/]", level=VERBOSE)
    console = stdout()
    usual = (
        "no error rate is known for it"
        if detection.p_value is None
        else f"{detection.p_value:.0%} of healthy reference scans score this high or higher"
    )
    console.print(f"Scan score [b]{detection.score:.3f}[/] ({usual})")
    if detection.findings:
        console.print(_table(detection))
    else:
        console.print(f"No finding at or above the threshold {detection.threshold:.3g}.")
    console.print(f"Written to {escape(str(output))}: {len(paths)} files", soft_wrap=True)
    if "report" in paths:
        console.print(f"Look at [b]{escape(paths['report'])}[/]", soft_wrap=True)


def _table(detection: Detection, most: int = 10) -> object:
    from rich.table import Table

    from medgen.report.frame import is_anatomical
    from medgen.report.words import position, reason, size

    count = len(detection.findings)
    more = f", the {most} with the highest peak" if count > most else ""
    table = Table(title=f"{count} finding{'s' * (count > 1)}{more}", title_justify="left")
    table.add_column("#", justify="right")
    for column in ("size", "peak", "mean"):
        table.add_column(column, justify="right")
    table.add_column(
        f"centre ({'mm, RAS+' if is_anatomical(detection.volume.provenance) else 'px'})"
    )
    table.add_column("slice")
    table.add_column("because of")
    reasons = {one.label: reason(one) for one in detection.explanations}
    for finding in detection.findings[:most]:
        table.add_row(
            str(finding.label),
            size(finding, detection.volume),
            f"{finding.peak:.2f}",
            f"{finding.mean:.2f}",
            position(finding, detection.volume),
            ", ".join(str(index) for index in finding.slice_index.values()),
            reasons.get(finding.label, ""),
        )
    return table


def _plan(
    source: Path,
    package: ModelPackage,
    frame: int | None,
    series: str | None,
    max_memory: float | None,
    for_pacs: bool,
) -> dict[str, Any]:
    """Check everything that can be checked from headers."""
    from medgen.tasks.detect_dicom import check_dicom_format
    from medgen.tasks.limits import default_memory_gb, plan

    limit = default_memory_gb() if max_memory is None else max_memory
    facts = plan(source, package.manifest, limit, frame=frame, series=series)
    if for_pacs:
        check_dicom_format(facts["kind"])
    return facts


def _say_plan(
    source: Path,
    output: Path,
    names: dict[str, str],
    package: ModelPackage,
    facts: dict[str, Any],
    as_json: bool,
) -> None:
    """Say what would happen."""
    from rich.markup import escape

    existing = [name for name in names.values() if (output / name).exists()]
    # Whether a model restores is known only once its network is built.
    maybe = names["restored"]
    certain = [name for name in names.values() if name != maybe]
    steps = {
        "input": facts,
        "model": f"{package.manifest.name} {package.manifest.version}",
        "output": str(output),
        "would_write": certain,
        "would_write_if_the_model_restores": [maybe],
        "would_replace": existing,
    }
    if as_json:
        print_json(steps)
        return
    console = stdout()
    lines = [
        f"Would read {source} and use model {steps['model']}.",
        f"Would write to {output}: {', '.join(certain)}; and, if the model restores, {maybe}",
    ]
    if existing:
        lines.append(f"Exist already (needs --overwrite): {', '.join(existing)}")
    for line in lines:
        console.print(escape(line), soft_wrap=True)
