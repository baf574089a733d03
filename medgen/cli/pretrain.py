"""``medgen pretrain``: parse, run the training, say what to do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli import options
from medgen.cli.console import NORMAL, Settings, configure, print_json, say, stdout

EPILOG = (
    "**Examples**\n\n"
    "medgen pretrain chest_xray/ --group-pattern '^([^_]+)_' -o runs/chest-mae\n\n"
    "medgen pretrain histology/ --method contrastive --symmetries dihedral -o runs/colon\n\n"
    "medgen pretrain histology/ --method vae --set config.latent_channels=32 -o runs/colon-vae\n\n"
    "medgen pretrain configs/mine.yaml -o runs/mine"
)


def pretrain(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder of images, with a subfolder per condition or without; or a training "
            "configuration (YAML), which then says everything.",
        ),
    ],
    output: options.Output,
    method: Annotated[
        str, typer.Option(help="What is learned: mae, dae, vae or contrastive.", metavar="NAME")
    ] = "mae",
    steps: Annotated[int, typer.Option(help="Steps of training.", min=1)] = 3000,
    minutes: Annotated[
        float | None, typer.Option(help="Training also ends after so long.", min=0.0)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per step.", min=2)] = 32,
    size: Annotated[
        int | None,
        typer.Option(
            help="Edge of the images in pixels, a multiple of 16; left out: as the first is "
            "stored.",
            min=32,
        ),
    ] = None,
    spatial_dims: Annotated[
        int, typer.Option(help="2: pictures and slices of volumes; 3: volumes.", min=2, max=3)
    ] = 2,
    symmetries: Annotated[
        str,
        typer.Option(
            help="How images are turned at random: none, mirror (left-right) or dihedral (all "
            "eight ways)."
        ),
    ] = "none",
    held_out: Annotated[
        float,
        typer.Option(
            help="Part of the images, by patient, that is never trained on.",
            min=0.0,
            max=0.9,
            rich_help_panel=options.READING,
        ),
    ] = 0.25,
    conditions: options.Conditions = None,
    group_pattern: options.GroupPattern = None,
    exclude: options.Exclude = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change one setting, nested keys with dots; can be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Go on from the last checkpoint in OUT.")
    ] = False,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Let an encoder learn from images without labels.

    It draws hidden patches (mae), removes coarse noise (dae), describes an image by few numbers
    (vae), or finds two views of one image again (contrastive). Images of all conditions are
    learned from. **medgen probe** measures what that is worth when few images have labels.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.devices import check_device_name

    check_device_name(device)
    if data.suffix.lower() in (".yaml", ".yml"):
        from medgen.training.config import read_config

        settings, command = read_config(data, changes or ()), "pretrain CONFIG -o OUT"
    else:
        from medgen.tasks.pretrain import Where, pretraining_config

        settings = pretraining_config(
            data, method,
            where=Where(
                options.named(conditions), group_pattern, options.listed(exclude), held_out
            ),
            spatial_dims=spatial_dims,  # type: ignore[arg-type]
            size=size, symmetries=symmetries, steps=steps, minutes=minutes,
            batch_size=batch_size, seed=seed, changes=changes or (),
        )  # fmt: skip
        command = f"pretrain DATA -o OUT --method {method} --seed {seed}"
    if dry_run:
        from medgen.tasks.train import dry_run as look

        print_json(look(settings))
        return
    say(f"Training {settings.method} for {settings.steps} steps.")
    from medgen.tasks.train import train as run

    result = run(
        data, settings, output, changes=changes or (), resume=resume, overwrite=overwrite,
        device=device, progress=Settings.level >= NORMAL, command=command,
    )  # fmt: skip
    if json:
        print_json({"folder": str(output), "step": result.step, "finished": result.finished,
                    "metrics": result.metrics, "warnings": result.warnings})  # fmt: skip
        return
    from rich.markup import escape

    stdout().print(f"Pre-trained for {result.step} steps: {escape(str(output))}", soft_wrap=True)
    stdout().print(
        f"What it is worth: medgen probe {escape(str(output))} DATA -o OUT", soft_wrap=True
    )
