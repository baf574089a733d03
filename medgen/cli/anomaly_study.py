"""``medgen evaluate anomaly`` and ``medgen benchmark anomaly``: parse, compare, print the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, progress_bar, say, show_error, stdout

if TYPE_CHECKING:
    from medgen.tasks.anomaly_study import Study

EVALUATE_EPILOG = (
    "**Examples**\n\n"
    "medgen evaluate anomaly study.yaml -o evaluation\n\n"
    "medgen evaluate anomaly study.yaml --data scans/ --set protocols=[kascenas2022] -o evaluation"
)
BENCHMARK_EPILOG = (
    "**Examples**\n\n"
    "medgen benchmark anomaly configs/studies/anomaly-phantoms.yaml -o study --steps 200\n\n"
    "medgen benchmark anomaly configs/studies/anomaly-chest-xray.yaml --data scans/ -o study "
    "--minutes-per-method 10 --seeds 3 --device cuda\n\n"
    "medgen benchmark anomaly suite.yaml -o study --minutes-per-method 10 --resume"
)
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of the data, instead of the file's **root**.", metavar="DIR"),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change a setting: a dotted key and a YAML value; can be repeated.",
        metavar="KEY=VALUE",
    ),
]
Jobs = Annotated[int, typer.Option(help="Models at the same time.", min=1)]


def evaluate_anomaly(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file: data, protocols, models.")
    ],
    output: options.Output,
    data: Data = None,
    changes: Changes = None,
    jobs: Jobs = 1,
    resume: options.ResumeStudy = False,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure how well models find anomalies, by named protocols, with untrained baselines.

    Writes table.md, index.html (with curves and maps), cases.tsv, evaluation.json and run.json.
    Thresholds come from a validation set of other subjects; a subject that is in two sets, or
    that a model was trained on, is refused.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    study = _study(config, data, changes, device)
    from medgen.errors import InputError

    if study.methods:
        raise InputError(
            f"{config} names methods to train: {', '.join(study.methods)}",
            "Use `medgen benchmark anomaly`, or leave `methods` out.",
        )
    command = "evaluate anomaly CONFIG -o OUT"
    _compare(study, config, output, command, dry_run=dry_run, json=json,
             jobs=jobs, resume=resume, device=device)  # fmt: skip


def benchmark_anomaly(
    suite: Annotated[
        Path,
        typer.Argument(
            metavar="SUITE", help="YAML file: data, protocols, methods and their training."
        ),
    ],
    output: options.Output,
    data: Data = None,
    methods: options.SuiteMethods = None,
    seeds: options.Seeds = 3,
    minutes_per_method: options.MinutesPerMethod = None,
    steps: Annotated[
        int | None, typer.Option(help="Or its length in steps (default: the suite's).", min=1)
    ] = None,
    changes: Changes = None,
    jobs: Jobs = 1,
    resume: options.ResumeStudy = False,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train many methods of anomaly detection alike, and measure them on the same cases.

    All methods get the same data and the same time (or steps), several seeds each. The tables are
    those of **medgen evaluate anomaly**; the untrained baselines stand in each of them.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.errors import InputError

    options.one_length(minutes_per_method, steps)
    study = _study(suite, data, changes, device)
    if not study.methods:
        raise InputError(
            f"{suite} names no methods to train",
            "Give `methods`, or use `medgen evaluate anomaly` for models that exist.",
        )
    wanted = options.suite_methods(methods)
    length = f" --steps {steps}" if steps else ""
    length += f" --minutes-per-method {minutes_per_method:g}" if minutes_per_method else ""
    chosen = f" --methods {','.join(wanted)}" if wanted else ""
    command = f"benchmark anomaly SUITE -o OUT{chosen} --seeds {seeds}{length}"
    _compare(study, suite, output, command, dry_run=dry_run, json=json, jobs=jobs, resume=resume,
             device=device, methods=wanted, seeds=seeds, steps=steps,
             minutes=minutes_per_method)  # fmt: skip


def _study(config: Path, data: Path | None, changes: list[str] | None, device: str) -> Study:
    from medgen.devices import check_device_name
    from medgen.tasks.anomaly_study import read_study

    check_device_name(device)
    return read_study(config, changes or (), data)


def _compare(
    study: Study, config: Path, output: Path, command: str, *, dry_run: bool, json: bool,
    jobs: int, **how: Any,
) -> None:  # fmt: skip
    """Run the study and print its table."""
    from medgen.errors import MedgenError
    from medgen.tasks.anomaly_checks import check_models
    from medgen.tasks.anomaly_study import study_cases, study_variants, units
    from medgen.tasks.output_folder import refuse_inside

    cells = units(study, how.get("methods", ()), how.get("seeds", 1))
    if study.root.is_dir() and study.root.resolve() != Path().resolve():
        refuse_inside(output, study.root)
    if dry_run:
        sets = study_cases(study)
        check_models(study, cells, sets, steps=how.get("steps"), minutes=how.get("minutes"))
        print_json(
            {
                "study": study.model_dump(mode="json"),
                "cases": {name: [case.name for case in cases] for name, cases in sets.items()},
                "protocols": [variant.name for variant in study_variants(study)],
                "cells": [cell.label for cell in cells],
            }
        )
        return
    say(f"{len(cells)} models and baselines, {jobs} at a time")
    from medgen.batch.cells import runner
    from medgen.tasks.evaluate_anomaly import TABLE, compare

    with progress_bar("models") as progress:
        found = compare(
            study, output, command=command, config=config, runner=runner(jobs),
            progress=progress, **how,
        )  # fmt: skip
    if json:
        print_json(found.result)
    else:
        table = (output / TABLE).read_text(encoding="utf-8")
        stdout().print(table, markup=False, soft_wrap=True, end="")
        say(f"Written to {output}; index.html shows test images: keep it where they may be kept.")
    if found.failed:
        for cell, message in found.failed.items():
            show_error(f"{cell}: {message}")
        raise MedgenError(
            f"{len(found.failed)} of {len(cells)} models failed; the tables hold the others",
            "Try again with --resume: what is finished is kept.",
        )
