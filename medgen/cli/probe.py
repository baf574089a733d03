"""``medgen probe``: parse, compare, print the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, progress_bar, say, stdout

EPILOG = (
    "**Examples**\n\n"
    "medgen probe runs/chest-mae chest_xray/ -o probe\n\n"
    "medgen probe runs/mae runs/vae medgen-features histology/ --held-out 0.3 -o probe\n\n"
    "medgen probe runs/mae histology/ --fractions 0.01,0.1,1 --fine-tune --device cuda -o probe"
)


def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Folders of training runs, or names or folders of packages."
        ),
    ],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder of images, a subfolder per label.")
    ],
    output: options.Output,
    fractions: Annotated[
        str,
        typer.Option(
            help="Parts of the training groups (patients) that have labels.", metavar="A,B,..."
        ),
    ] = "0.01,0.1,1",
    seeds: Annotated[
        int, typer.Option(help="Repetitions, with other labelled groups and weights.", min=1)
    ] = 3,
    fine_tune: Annotated[
        bool,
        typer.Option(
            "--fine-tune",
            metavar="",
            help="Also train the whole network, from pre-trained and from random weights.",
        ),
    ] = False,
    fine_tune_steps: Annotated[int, typer.Option(help="Steps of each such training.", min=1)] = 300,
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Part of the images, by patient, to test on; left out: as in the first RUN's "
            "training if DATA is its folder, else 0.25.",
            min=0.01,
            max=0.9,
            rich_help_panel=options.READING,
        ),
    ] = None,
    conditions: options.Conditions = None,
    group_pattern: options.GroupPattern = None,
    exclude: options.Exclude = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure what pre-training is worth when few images have labels.

    Classifiers are fitted on a fraction of the labels, on the frozen features of a network and
    (--fine-tune) by training all of it; from its pre-trained weights and from random ones, and
    tested on patients that no network has seen. Writes table.md, probe.tsv, probe.json, curves.png
    and run.json; what did not help stays in the table.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.devices import check_device_name, resolve_device
    from medgen.errors import InputError

    check_device_name(device)
    try:
        parts = tuple(sorted({float(part) for part in fractions.split(",")}))
    except ValueError:
        raise InputError(f"--fractions must be numbers such as 0.01,0.1,1, got {fractions!r}",
                         "Put commas between them.") from None  # fmt: skip
    from medgen.tasks.probe import Options
    from medgen.tasks.probe_files import TABLE, probe_files

    given = {
        "validation_fraction": held_out, "conditions": options.named(conditions),
        "group_pattern": group_pattern, "exclude": options.listed(exclude) or None,
    }  # fmt: skip
    with progress_bar("classifiers") as progress:
        result = probe_files(
            models, data, output,
            {key: value for key, value in given.items() if value is not None},
            Options(parts, seeds, fine_tune, fine_tune_steps, resolve_device(device)),
            overwrite=overwrite, progress=progress,
            command=f"probe RUN DATA -o OUT --fractions {fractions} --seeds {seeds}"
            + (f" --fine-tune --fine-tune-steps {fine_tune_steps}" if fine_tune else ""),
        )  # fmt: skip
    if json:
        print_json(result)
        return
    table = (output / TABLE).read_text(encoding="utf-8")
    stdout().print(table, markup=False, soft_wrap=True, end="")
    from rich.markup import escape

    say(f"Written to {escape(str(output))}.")
