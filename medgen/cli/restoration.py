"""What ``inpaint``, ``super-resolve``, ``denoise`` and ``translate`` share: options, run, print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from medgen.cli import options
from medgen.cli.console import VERBOSE, configure, print_json, progress_bar, say, stdout

if TYPE_CHECKING:
    from rich.table import Table

    from medgen.manifest import Manifest, Restored
    from medgen.tasks.restoration import Restoration

# Looks at header facts and refuses what can be refused before any work; says what would be made.
Check = Callable[[Mapping[str, Any], "Manifest"], Sequence[str]]

# Measures that the first line of the result says already.
SAID = ("filled_voxels", "filled_ml")
# A measure in more characters than this has a line of its own.
LONGEST = 16


@dataclass(frozen=True)
class Shared:
    """The options that the four commands share."""

    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="NIfTI, PNG/JPEG/TIFF, DICOM file, folder or zip."),
    ]
    output: options.Output
    device: options.Device = "auto"
    seed: options.Seed = 0
    frame: options.Frame = None
    series: options.Series = None
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            metavar="",
            help="Take a scan of another contrast than the model was trained on, too.",
        ),
    ] = False
    max_memory: Annotated[
        float | None,
        typer.Option(
            help="Most memory to use in GB. Default: 80 % of what is free, at most 16.",
            metavar="GB",
            min=0.0,
        ),
    ] = None
    report: Annotated[
        bool,
        typer.Option("--report/--no-report", metavar="", help="Draw overview.png and report.html."),
    ] = True
    dicom_out: Annotated[
        bool,
        typer.Option(
            "--dicom-out",
            metavar="",
            help="Also write the result as a DICOM series beside the scan's. The input must be "
            "DICOM.",
        ),
    ] = False
    overwrite: options.Overwrite = False
    dry_run: options.DryRun = False
    json: options.Json = False
    quiet: options.Quiet = False
    verbose: options.Verbose = False
    debug: options.Debug = False


def with_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Shared`; it receives them together as ``shared``.

    typer reads options off a function's signature, so that is what is put together here: the input
    and ``-o``, the command's own options, and the others.
    """
    hints = get_type_hints(command, include_extras=True)
    own = {name: p for name, p in signature(command).parameters.items() if name != "shared"}
    hints |= get_type_hints(Shared, include_extras=True)
    shared = {
        f.name: Parameter.empty if f.default is MISSING else f.default for f in fields(Shared)
    }
    first = [name for name, default in shared.items() if default is Parameter.empty]
    order = {name: shared[name] for name in first}
    order |= {name: parameter.default for name, parameter in own.items()}
    order |= shared

    def called(**values: Any) -> None:
        command(Shared(**{name: values.pop(name) for name in shared}), **values)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {name: hints[name] for name in order}
    called.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[name])
            for name, default in order.items()
        ]
    )
    return called


def run(
    verb: Restored,
    shared: Shared,
    model: str,
    kind: str | Callable[[Manifest], str],
    *,
    given: Mapping[str, Any],
    words: Mapping[str, object],
    check: Check = lambda facts, manifest: (),
    also_read: Sequence[Path] = (),
) -> None:
    """Do one of the four tasks, write its files, and say what came out.

    Args:
        verb: The task; ``medgen.inpaint`` and so on do the work.
        shared: The shared options.
        model: Name or folder of a model, or name of a classical method.
        kind: Word for the result in file names, perhaps as the model has it.
        given: The task's own arguments.
        words: The command's own options as they should stand in ``run.json``; those that are None
            or False are left out.
        check: Refuses what headers show to be wrong; for ``--dry-run``.
        also_read: Other inputs, to be recorded.
    """
    configure(quiet=shared.quiet, verbose=shared.verbose, debug=shared.debug)
    import medgen
    from medgen.devices import check_device_name
    from medgen.tasks.output_folder import output_folder, refuse_inside
    from medgen.tasks.restoration_files import output_names, write_files
    from medgen.tasks.restoration_scan import find_model

    check_device_name(shared.device)
    refuse_inside(shared.output, shared.source)
    package, manifest = find_model(verb, model)
    word = kind if isinstance(kind, str) else kind(manifest)
    names = output_names(
        verb, word, [str(shared.source)], report=shared.report, dicom=shared.dicom_out
    )
    if shared.dry_run:
        facts, notes = _plan(shared, manifest)
        _say_plan(shared, names, manifest, facts, [*notes, *check(facts, manifest)])
        return
    if shared.dicom_out:
        _plan(shared, manifest)  # refuses another format before the work
    task = getattr(medgen, verb.replace("-", "_"))
    with output_folder(shared.output, list(names.values()), overwrite=shared.overwrite) as draft:
        with progress_bar(manifest.name) as progress:
            result: Restoration = task(
                shared.source, package or model, device=shared.device, seed=shared.seed,
                max_memory_gb=shared.max_memory, frame=shared.frame, series=shared.series,
                force=shared.force, progress=progress, **given,
            )  # fmt: skip
        kinds = write_files(
            result, draft, report=shared.report, dicom=shared.dicom_out, also_read=also_read,
            command=_command(verb, manifest.name, shared, words),
        )  # fmt: skip
    paths = {which: str(shared.output / names[which]) for which in kinds}
    _print(result, shared, paths)


def _command(verb: str, model: str, shared: Shared, words: Mapping[str, object]) -> str:
    """The verb and its options without paths, which may hold a name."""
    said = {
        "model": model, **words, "device": shared.device, "seed": shared.seed,
        "frame": shared.frame, "series": shared.series, "max-memory": shared.max_memory,
        "force": shared.force, "dicom-out": shared.dicom_out, "no-report": not shared.report,
    }  # fmt: skip
    parts = [
        f"--{name}" if value is True else f"--{name} {value}"
        for name, value in said.items()
        if value is not None and value is not False
    ]
    return f"{verb} INPUT -o OUT {' '.join(parts)}"


# --- before ---------------------------------------------------------------------------------------


def _plan(shared: Shared, manifest: Manifest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Header facts of the scan and notes, after all checks that need no pixels."""
    from medgen.tasks.limits import default_memory_gb
    from medgen.tasks.restoration_plan import plan_scan

    limit = default_memory_gb() if shared.max_memory is None else shared.max_memory
    facts, notes = plan_scan(
        shared.source, manifest, limit, frame=shared.frame, series=shared.series, force=shared.force
    )
    if shared.dicom_out:
        from medgen.io.dicom_out import refuse_other_format

        refuse_other_format(facts["kind"])
    return facts, notes


def _say_plan(
    shared: Shared,
    names: Mapping[str, str],
    manifest: Manifest,
    facts: Mapping[str, Any],
    lines: Sequence[str],
) -> None:
    """Say what would happen."""
    from rich.markup import escape

    existing = [name for name in names.values() if (shared.output / name).exists()]
    maps = ["uncertainty", "invented"]
    certain = [name for kind, name in names.items() if kind not in maps]
    if manifest.task != "inpaint":
        maps.remove("invented")
    maybe = [names[kind] for kind in maps]
    steps = {
        "input": dict(facts),
        "model": f"{manifest.name} {manifest.version}",
        "output": str(shared.output),
        "plan": list(lines),
        "would_write": certain,
        "would_write_if_there_are_such_maps": maybe,
        "would_replace": existing,
    }
    if shared.json:
        print_json(steps)
        return
    text = [
        f"Would read {shared.source} and use {steps['model']}.",
        *lines,
        f"Would write to {shared.output}: {', '.join(certain)}; and, if there is such a map, "
        f"{' and '.join(maybe)}",
    ]
    if existing:
        text.append(f"Exist already (needs --overwrite): {', '.join(existing)}")
    for line in text:
        stdout().print(escape(line), soft_wrap=True)


# --- after ----------------------------------------------------------------------------------------


def _print(result: Restoration, shared: Shared, paths: Mapping[str, str]) -> None:
    """What came out, in a few lines; only results and paths go to stdout."""
    from rich.markup import escape

    from medgen.report.comparison_scene import uncertainty_meaning
    from medgen.tasks.restoration_files import restoration_summary

    if shared.json:
        print_json({**restoration_summary(result), "outputs": dict(paths)})
        return
    for fallback in result.fallbacks:
        say(f"[yellow]Note:[/] {escape(fallback)}")
    for note in result.notes:
        if note not in result.fallbacks:
            say(f"[dim]{escape(note)}[/]")
    for step, seconds in result.timings.items():
        say(f"[dim]{step}: {seconds:.2f} s[/]", level=VERBOSE)
    console = stdout()
    console.print(_headline(result), soft_wrap=True)
    texts = {n: v for n, v in result.measures.items() if isinstance(v, str) and len(v) > LONGEST}
    numbers = {n: v for n, v in result.measures.items() if n not in {*texts, *SAID}}
    if numbers:
        console.print(_table(numbers))
    for name, text in texts.items():
        console.print(escape(f"{name.replace('_', ' ').capitalize()}: {text}"), soft_wrap=True)
    console.print(escape(uncertainty_meaning(result)), soft_wrap=True)
    console.print(f"Written to {escape(str(shared.output))}: {len(paths)} files", soft_wrap=True)
    if "report" in paths:
        console.print(f"Look at [b]{escape(paths['report'])}[/]", soft_wrap=True)


def _headline(result: Restoration) -> str:
    """What was done, in one line."""
    from rich.markup import escape

    from medgen.tasks.restoration_files import invented_share

    by = f"by [b]{escape(result.model.name)}[/] {result.model.version}"
    if result.verb == "inpaint":
        voxels, ml = invented_share(result)
        if not voxels:
            return "Nothing was filled: the result is the scan"
        size = "pixels" if ml is None else f"voxels ({ml:.3g} ml)"
        return f"Filled [b]{voxels:,}[/] {size} {by}; all others are the scan's own"
    if result.verb == "super-resolve":
        grids = [_grid(geometry) for geometry in (result.volume.geometry, result.geometry)]
        return f"From {grids[0]} to [b]{grids[1]}[/] {by}"
    if result.verb == "translate":
        return f"Made a synthetic [b]{escape(result.kind)}[/] image {by}"
    return f"Denoised {_grid(result.geometry)} {by}"


def _grid(geometry: Any) -> str:
    size = " x ".join(map(str, geometry.shape))
    return f"{size} voxels of {' x '.join(f'{mm:.3g}' for mm in geometry.spacing_mm)} mm"


def _table(numbers: Mapping[str, float | str]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from medgen.tasks.restoration_files import MEASURES

    table = Table()
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("what it is")
    for name, value in numbers.items():
        shown = value if isinstance(value, str) else f"{value:.4g}"
        table.add_row(escape(name.replace("_", " ")), escape(shown), MEASURES.get(name, ""))
    return table
