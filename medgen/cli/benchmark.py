"""``medgen benchmark``: the group of commands, and ``medgen benchmark synthesis``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli import options
from medgen.cli.anomaly_study import BENCHMARK_EPILOG as ANOMALY_EPILOG
from medgen.cli.anomaly_study import benchmark_anomaly
from medgen.cli.console import configure, print_json, progress_bar, say, show_error, stdout

benchmark = typer.Typer(help="Compare methods on your own data.", no_args_is_help=True)
benchmark.command("anomaly", epilog=ANOMALY_EPILOG)(benchmark_anomaly)

EPILOG = (
    "**Examples**\n\n"
    "medgen benchmark synthesis cardiac -o study --minutes-per-method 10 --device cuda\n\n"
    "medgen benchmark synthesis cardiac -o quick --methods dcgan,spade --seeds 1 --steps 500\n\n"
    "medgen benchmark synthesis cardiac -o study --minutes-per-method 10 --resume"
)


@benchmark.callback()
def _group() -> None:
    """Compare methods on your own data."""


@benchmark.command(epilog=EPILOG)
def synthesis(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET", help="Folder of .npz files, or with images/ and labels/."
        ),
    ],
    output: options.Output,
    suite: Annotated[str, typer.Option(help="The study to repeat.")] = "skandarani",
    methods: options.SuiteMethods = None,
    seeds: options.Seeds = 3,
    minutes_per_method: options.MinutesPerMethod = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Or its length in steps of 32 images (default 5000).", min=1),
    ] = None,
    size: Annotated[int, typer.Option(help="Edge of the images in pixels.", min=16)] = 64,
    samples: Annotated[int, typer.Option(help="Synthetic pairs of each method.", min=20)] = 600,
    segmentation_steps: Annotated[
        int, typer.Option(help="Training steps of each U-Net.", min=1)
    ] = 600,
    features: Annotated[
        str, typer.Option(help="Model package whose features images are compared by.")
    ] = "medgen-features",
    jobs: Annotated[int, typer.Option(help="Trainings at the same time.", min=1)] = 1,
    resume: options.ResumeStudy = False,
    device: options.Device = "auto",
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Repeat a published comparison of generative networks on an annotated set.

    Every method learns image and label map from the training patients. Reported are the distance
    to images of held-out patients, and the Dice on them of a U-Net trained on synthetic pairs, on
    real and synthetic ones, and on real ones only.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.devices import check_device_name
    from medgen.errors import MedgenError

    check_device_name(device)
    options.one_length(minutes_per_method, steps)
    if minutes_per_method is None and steps is None:
        steps = 5000
    from medgen.tasks.benchmark_plan import BenchmarkSettings, planned
    from medgen.training.config import validated

    values = {
        "suite": suite, "size": size, "steps": steps, "minutes": minutes_per_method,
        "samples": samples, "segmentation_steps": segmentation_steps, "features": features,
    }  # fmt: skip
    settings = validated(BenchmarkSettings, values, "benchmark")
    wanted = options.suite_methods(methods)
    cells = planned(suite, wanted, seeds)
    if dry_run:
        print_json({"settings": settings.model_dump(), "cells": [cell.folder for cell in cells]})
        return
    say(f"{len(cells)} trainings and baselines, {jobs} at a time")
    from medgen.batch.cells import runner
    from medgen.report.benchmark import markdown
    from medgen.tasks.benchmark_synthesis import benchmark as run

    with progress_bar("trainings") as progress:
        found = run(
            dataset, output, settings, methods=wanted, seeds=seeds, device=device,
            runner=runner(jobs), resume=resume, progress=progress,
        )  # fmt: skip
    if json:
        print_json(vars(found))
    else:
        stdout().print(markdown(found), markup=False, soft_wrap=True)
    if found.failed:
        for cell, message in found.failed.items():
            show_error(f"{cell}: {message}")
        raise MedgenError(
            f"{len(found.failed)} of {len(cells)} cells failed; the table holds the others",
            "Try again with --resume: what is finished is kept.",
        )
