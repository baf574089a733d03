"""``medgen train``: parse, run the training, print where its results lie."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli import options
from medgen.cli.console import NORMAL, Settings, configure, print_json, say, stdout

EPILOG = (
    "**Examples**\n\n"
    "medgen train configs/gan/stylegan2.yaml -o runs/mine --set data.folder=IMAGES\n\n"
    "medgen train configs/brain-mr.yaml -o runs/brain-mr\n\n"
    "medgen train configs/brain-mr.yaml -o runs/brain-mr --resume\n\n"
    "medgen train configs/baselines/brain-vae.yaml -o runs/vae --set data.folder=label_maps"
)


def train(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Training configuration (YAML).")
    ],
    output: options.Output,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change one setting of CONFIG, nested keys with dots; can be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Go on from the last checkpoint in OUT.")
    ] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(help="Stop after so long, with a checkpoint to resume from.", min=0.0),
    ] = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train any method: on your own folder of images, with or without labels, or on synthesised
    anatomy.

    Writes weights.safetensors, training.json, log.jsonl, run.json, image grids and a checkpoint
    to resume from. A resumed run ends bit for bit where an uninterrupted one does. Warns when a
    generator collapses, stalls or is overpowered, and says what to change. --dry-run checks
    settings and data, and counts the images.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.devices import check_device_name
    from medgen.training.config import read_config

    check_device_name(device)
    settings = read_config(config, changes or ())
    if dry_run:
        from medgen.tasks.train import dry_run as look

        print_json(look(settings))
        return
    from rich.markup import escape

    log = escape(str(output / "log.jsonl"))
    say(f"Training {settings.method} for {settings.steps} steps; follow {log}")
    from medgen.tasks.train import train as run

    result = run(
        config, settings, output, changes=changes or (), resume=resume, overwrite=overwrite,
        max_minutes=max_minutes, device=device, progress=Settings.level >= NORMAL,
    )  # fmt: skip
    if json:
        print_json({"folder": str(output), "step": result.step, "finished": result.finished,
                    "metrics": result.metrics, "warnings": result.warnings})  # fmt: skip
        return
    state = "Finished" if result.finished else "Stopped; go on with --resume"
    weights = escape(str(output / "weights.safetensors"))
    stdout().print(f"{state} at step {result.step}. Weights: {weights}", soft_wrap=True)
    for name, value in result.metrics.items():
        if name.startswith(("loss/", "validation/", "health/", "images_per_s")):
            stdout().print(f"  {name}  {value:.4g}")
    for warning in result.warnings:
        stdout().print(
            f"Warning from step {warning['step']}: {warning['message']}. {warning['remedy']}",
            style="yellow", markup=False, soft_wrap=True,
        )  # fmt: skip
