"""``medgen synthesize``: parse, call the task, print what was made and where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, progress_bar, say, stdout
from medgen.errors import InputError

if TYPE_CHECKING:
    from medgen.tasks.running import Progress
    from medgen.tasks.synthesize import Request, Synthesis

WALKS = "Pictures of the latent space"
EPILOG = (
    "**Examples**\n\n"
    "medgen synthesize --list-conditions\n\n"
    "medgen synthesize --condition cancer -n 64 -o out\n\n"
    "medgen synthesize --condition lesion --contrast flair -n 200 --format nifti -o out\n\n"
    "medgen synthesize --condition cancer --interpolate 3 17 --steps 12 -o out\n\n"
    'medgen synthesize -m colon-histology --arithmetic "cancer:lumen - cancer:no_lumen + '
    'benign:no_lumen" -o out'
)
DEFAULT_NUMBER = 16
DEFAULT_STEPS = {"interpolate": 8, "grid": 3}


def synthesize(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Folder for the outputs; made if absent.", metavar="OUT"
        ),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition",
            "-c",
            help="What to make; several take turns. A name alone stands for all its attributes "
            "(lesion: lesion:flair, lesion:t1, ...). Default: all that the model has.",
            metavar="NAME",
        ),
    ] = None,
    contrast: Annotated[
        str | None,
        typer.Option(help="Only conditions with this attribute.", metavar="NAME"),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Name or folder of a model. Default: the only one that has the condition.",
        ),
    ] = None,
    number: Annotated[
        int | None, typer.Option("-n", help="How many images. Default: 16.", metavar="N")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same images.")] = 0,
    truncation: Annotated[
        float | None,
        typer.Option(
            help="From 0 (all alike) to 1 (as varied as in training). Default: the model's own."
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            help="png, nifti or dicom. Default: png for pictures, nifti for volumes.",
            metavar="FORMAT",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of label maps to paint, one image each.", metavar="FOLDER"),
    ] = None,
    list_conditions: Annotated[
        bool, typer.Option("--list-conditions", metavar="", help="List what can be made.")
    ] = False,
    interpolate: Annotated[
        tuple[str, str] | None,
        typer.Option(
            help="Images from A to B, each the number of an image of the seed, an image file, or "
            "a condition.",
            metavar="A B",
            rich_help_panel=WALKS,
        ),
    ] = None,
    grid: Annotated[
        bool,
        typer.Option(
            "--grid", metavar="", help="A square of images between nine.", rich_help_panel=WALKS
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Images from A to B, or from one of the nine to the next. Default: 8, or 3.",
            metavar="N",
            rich_help_panel=WALKS,
        ),
    ] = None,
    arithmetic: Annotated[
        str | None,
        typer.Option(
            help='Of the means of sets: "A - B + C", with blanks.',
            metavar="EXPRESSION",
            rich_help_panel=WALKS,
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A set for --arithmetic: a folder of images. Several may be given.",
            metavar="NAME=FOLDER",
            rich_help_panel=WALKS,
        ),
    ] = None,
    invert: Annotated[
        list[Path] | None,
        typer.Option(
            help="Find the nearest image that the model can make of a real one. Several may be "
            "given.",
            metavar="IMAGE",
            rich_help_panel=WALKS,
        ),
    ] = None,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Make images of a condition.

    Writes images, their label maps if the model makes them, manifest.jsonl (what each image was
    made from, and how near it is to a training image), a contact sheet, a gallery to look at and
    run.json. Every file says that it is synthetic. The same seed gives the same images.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    if list_conditions:
        _list_conditions(json)
        return
    from medgen.devices import check_device_name
    from medgen.tasks.synthesize import check_number, request
    from medgen.tasks.synthesize_files import checked_format, save_synthesis

    check_device_name(device)
    walk = _walk(interpolate, grid, arithmetic, invert, masks)
    _check_combination(walk, number, steps, sets)
    wish = request(model, condition or (), contrast=contrast, seed=seed, truncation=truncation)
    chosen = checked_format(wish, format)
    if output is None and not dry_run:
        raise InputError("-o is missing: the folder for the outputs")
    if wish.chosen:
        say(f"Using {wish.package.manifest.name}, the only model that makes this.")
    n = DEFAULT_NUMBER if number is None else number
    size = check_number(wish, n, output)
    folders = _sets(sets or ())
    if dry_run:
        _say_plan(wish, walk, n if walk in (None, "masks") else None, chosen, size, output, json)
        return
    assert output is not None
    with progress_bar(wish.package.manifest.name) as progress:
        made = _make(
            wish, walk, n, device, masks, interpolate, steps, arithmetic, folders, invert, progress
        )
        paths = save_synthesis(
            made, output, format=chosen, overwrite=overwrite, progress=progress,
            command=_command(wish, walk, n, chosen, device),
        )  # fmt: skip
    _print_result(made, paths, json)


def _walk(
    interpolate: object, grid: bool, arithmetic: object, invert: object, masks: object
) -> str | None:
    """Which picture of the latent space is wanted, if any.

    Raises:
        InputError: Several are.
    """
    asked = {
        "interpolate": interpolate is not None, "grid": grid,
        "arithmetic": arithmetic is not None, "invert": bool(invert), "masks": masks is not None,
    }  # fmt: skip
    wanted = [name for name, given in asked.items() if given]
    if len(wanted) > 1:
        raise InputError(f"only one of --{' and --'.join(wanted)} can be asked for at a time")
    return wanted[0] if wanted else None


def _check_combination(
    walk: str | None, number: int | None, steps: int | None, sets: object
) -> None:
    """Refuse options that would be ignored.

    Raises:
        InputError: There is one.
    """
    if number is not None and walk not in (None, "masks"):
        raise InputError(f"-n does not go with --{walk}", "Its number of images is its own.")
    if steps is not None and walk not in DEFAULT_STEPS:
        raise InputError("--steps goes with --interpolate or --grid")
    if sets and walk != "arithmetic":
        raise InputError("--set goes with --arithmetic")


def _sets(texts: Any) -> dict[str, Path]:
    """Named folders of ``NAME=FOLDER``.

    Raises:
        InputError: One is malformed, or a name stands twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise InputError(f"--set must be NAME=FOLDER, got {text!r}")
        if name in found:
            raise InputError(f"--set {name} is given twice")
        found[name] = Path(folder)
    return found


def _make(
    wish: Request,
    walk: str | None,
    n: int,
    device: str,
    masks: Path | None,
    interpolate: tuple[str, str] | None,
    steps: int | None,
    arithmetic: str | None,
    sets: dict[str, Path],
    invert: list[Path] | None,
    progress: Progress | None,
) -> Synthesis:
    """The task that was asked for."""
    from medgen.tasks import latent_walks
    from medgen.tasks.synthesize import run

    if interpolate is not None:
        number = DEFAULT_STEPS["interpolate"] if steps is None else steps
        return latent_walks.interpolate(wish, *interpolate, steps=number, device=device)
    if walk == "grid":
        number = DEFAULT_STEPS["grid"] if steps is None else steps
        return latent_walks.grid(wish, steps=number, device=device)
    if arithmetic is not None:
        return latent_walks.arithmetic(wish, arithmetic, sets=sets, device=device)
    if invert:
        return latent_walks.invert_images(wish, invert, device=device, progress=progress)
    return run(wish, n, device=device, masks=masks)


def _command(wish: Request, walk: str | None, n: int, format: str, device: str) -> str:
    """The verb and its options without paths, which may hold a name."""
    names = [name for number in wish.conditions if (name := wish.condition_name(number))]
    words = [f"--condition {name}" for name in names]
    words += [f"--{walk}" if walk else f"-n {n}", f"--seed {wish.seed}"]
    words += [f"--truncation {wish.truncation:g}", f"--format {format}", f"--device {device}"]
    return f"synthesize -o OUT --model {wish.package.manifest.name} " + " ".join(words)


def _list_conditions(as_json: bool) -> None:
    """Every model that makes images, and of what."""
    from medgen.tasks.conditions import conditions_by_model

    models = conditions_by_model()
    if as_json:
        print_json({name: list(conditions) for name, conditions in models.items()})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("model", "conditions")
    for name, conditions in models.items():
        table.add_row(escape(name), escape(", ".join(conditions)) or "[dim]none[/]")
    stdout().print(table if models else "No model here makes images.")


def _print_result(made: Synthesis, paths: dict[str, Path], as_json: bool) -> None:
    """What was made; with ``--json`` for programs."""
    from rich.markup import escape

    manifest = made.package.manifest
    for note in (*made.fallbacks, *made.notes):
        say(f"[yellow]Note:[/] {escape(note)}")
    if as_json:
        print_json({
            "model": manifest.name, "version": manifest.version,
            "model_sha256": made.package.sha256, "images": made.count,
            "outputs": {kind: str(path) for kind, path in paths.items()},
        })  # fmt: skip
        return
    console = stdout()
    plural = "s" * (made.count != 1)
    console.print(
        f"Made {made.count} synthetic image{plural} with {manifest.name} {manifest.version}: "
        + escape(str(paths["images"])),
        soft_wrap=True,
    )
    console.print(f"Look at [b]{escape(str(paths['gallery']))}[/]", soft_wrap=True)


def _say_plan(
    wish: Request,
    walk: str | None,
    n: int | None,
    format: str,
    size: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Say what would happen."""
    from rich.markup import escape

    from medgen.tasks.synthesize_files import output_names

    names = [name for number in wish.conditions if (name := wish.condition_name(number))]
    plan = {
        "model": f"{wish.package.manifest.name} {wish.package.manifest.version}",
        "what": walk or "images",
        "images": n,
        "conditions": names,
        "seed": wish.seed,
        "truncation": wish.truncation,
        "image_shape": list(wish.image_shape),
        "labels": wish.annotated,
        "format": format,
        "bytes_at_most": size if n else None,
        "output": str(output) if output else None,
        "would_write": list(output_names(wish).values()),
    }
    if as_json:
        print_json(plan)
        return
    console = stdout()
    shape = " x ".join(map(str, wish.image_shape[1:]))
    what = f"{n} images" if n else f"the images of --{walk}"
    of = f" of {', '.join(names)}" if names else ""
    lines = [
        f"Would make {what}{of} ({shape}, {format}) with {plan['model']}, seed {wish.seed}.",
        f"Would write {', '.join(output_names(wish).values())}"
        + (f" to {output}" if output else "")
        + (f", at most about {size / 1e6:.1f} MB." if n else "."),
    ]
    for line in lines:
        console.print(escape(line), soft_wrap=True)
