"""``medgen evaluate``: the group of commands, and ``medgen evaluate synthesis``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medgen.cli import options
from medgen.cli.anomaly_study import EVALUATE_EPILOG as ANOMALY_EPILOG
from medgen.cli.anomaly_study import evaluate_anomaly
from medgen.cli.console import configure, print_json, say, stdout
from medgen.cli.evaluate_paired import EPILOG as PAIRED_EPILOG
from medgen.cli.evaluate_paired import paired

if TYPE_CHECKING:
    from medgen.features import FeatureExtractor

evaluate = typer.Typer(help="Measure how good results are.", no_args_is_help=True)
evaluate.command(epilog=PAIRED_EPILOG)(paired)
evaluate.command("anomaly", epilog=ANOMALY_EPILOG)(evaluate_anomaly)

EPILOG = (
    "**Examples**\n\n"
    "medgen evaluate synthesis held_out/ made/ -o evaluation\n\n"
    "medgen evaluate synthesis data/ made/ --held-out 0.15 --conditions cancer=adenocarcinoma,"
    "benign=benign -o evaluation\n\n"
    "medgen evaluate synthesis hearts/ made/ --held-out 0.2 --dice --device cuda -o evaluation\n\n"
    "medgen evaluate synthesis held_out/ made/ -o evaluation --compare earlier/evaluation.json"
)
READING, EXTRACTOR = "How REAL is read", "Feature extractor"


@evaluate.callback()
def _group() -> None:
    """Measure how good results are."""


@evaluate.command(epilog=EPILOG)
def synthesis(
    real: Annotated[
        Path,
        typer.Argument(
            metavar="REAL",
            help="Folder of held-out real images, a subfolder per condition; or, with --held-out, "
            "of all of them.",
        ),
    ],
    fake: Annotated[
        Path,
        typer.Argument(metavar="FAKE", help="Output of **medgen synthesize**, or a like folder."),
    ],
    output: options.Output,
    train: Annotated[
        Path | None, typer.Option(help="Folder of the training images, to look for copies.")
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Split REAL by patient as training did (data.validation_fraction, usually 0.15): "
            "this part is held out, the rest was trained on.",
            min=0.0,
            max=0.9,
        ),
    ] = None,
    conditions: Annotated[
        str | None,
        typer.Option(
            help="Name of each condition and its subfolder of REAL.",
            metavar="NAME=SUBFOLDER,...",
            rich_help_panel=READING,
        ),
    ] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression whose first (...) is the patient in a file's name, if there "
            "is no groups.csv.",
            metavar="REGEX",
            rich_help_panel=READING,
        ),
    ] = None,
    exclude: Annotated[
        str | None,
        typer.Option(
            help="Files of REAL to leave out, by name without ending.",
            metavar="NAMES",
            rich_help_panel=READING,
        ),
    ] = None,
    fit: Annotated[
        str,
        typer.Option(
            help="How real images get to the size of the synthetic ones: resample or crop.",
            rich_help_panel=READING,
        ),
    ] = "resample",
    slices: Annotated[
        bool,
        typer.Option(
            "--slices",
            metavar="",
            help="Compare volumes slice by slice: for few volumes.",
            rich_help_panel=READING,
        ),
    ] = False,
    features: Annotated[
        str,
        typer.Option(
            help="Model package, or a TorchScript or safetensors file of yours.",
            rich_help_panel=EXTRACTOR,
        ),
    ] = "medgen-features",
    features_sha256: Annotated[
        str | None,
        typer.Option(
            help="SHA-256 that your file must have.", metavar="HASH", rich_help_panel=EXTRACTOR
        ),
    ] = None,
    features_size: Annotated[
        int,
        typer.Option(
            help="Side in pixels of the images that your TorchScript network takes.",
            min=8,
            rich_help_panel=EXTRACTOR,
        ),
    ] = 299,
    features_mean: Annotated[
        str | None,
        typer.Option(
            help="Subtracted from images in 0..1 before your network, such as 0.485,0.456,0.406. "
            "Left out: it gets -1..1.",
            metavar="R,G,B",
            rich_help_panel=EXTRACTOR,
        ),
    ] = None,
    features_std: Annotated[
        str | None,
        typer.Option(
            help="Then divided by, such as 0.229,0.224,0.225.",
            metavar="R,G,B",
            rich_help_panel=EXTRACTOR,
        ),
    ] = None,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            help="An earlier evaluation.json to stand beside this one; can be repeated. Refused if "
            "its extractor, image size or real images differ."
        ),
    ] = None,
    dice: Annotated[
        bool,
        typer.Option(
            "--dice",
            metavar="",
            help="Also train U-Nets on the synthetic, the real and both kinds of annotated images, "
            "and measure them on the held-out patients.",
        ),
    ] = False,
    segmentation_steps: Annotated[
        int, typer.Option(help="Training steps of each U-Net.", min=1)
    ] = 1000,
    segmentation_seeds: Annotated[int, typer.Option(help="U-Nets of each kind.", min=1)] = 3,
    classifier_steps: Annotated[
        int, typer.Option(help="Training steps of each classifier of conditions; 0: none.", min=0)
    ] = 300,
    device: options.Device = "auto",
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Compare synthetic images with real ones that the model has never seen.

    Writes evaluation.json, table.md, report.html and run.json: distances (FID, KID), fidelity and
    diversity (precision, recall, density, coverage, MS-SSIM), copies of training images, and how
    useful the images are. Each number stands beside that of real against real images.
    """
    configure(quiet=quiet, verbose=verbose, debug=debug)
    from medgen.devices import check_device_name
    from medgen.errors import InputError

    check_device_name(device)
    if fit not in ("resample", "crop"):
        raise InputError(f"--fit must be resample or crop, got {fit!r}")
    named = _conditions(conditions)
    extractor = _extractor(features, features_sha256, features_size, features_mean, features_std)
    from medgen.tasks.evaluation import TABLE, Options, Where
    from medgen.tasks.evaluation import evaluate as run

    left_out = tuple(name.strip() for name in (exclude or "").split(",") if name.strip())
    result = run(
        real, fake, output, extractor, train=train,
        where=Where(named, group_pattern, left_out, held_out, fit, slices),  # type: ignore[arg-type]
        options=Options(
            dice=dice, segmentation_steps=segmentation_steps,
            segmentation_seeds=segmentation_seeds, classifier_steps=classifier_steps, seed=seed,
            device=device, compare=tuple(compare or ()),
        ),
        overwrite=overwrite,
        command=f"evaluate synthesis REAL FAKE -o OUT --features {extractor.name} --seed {seed}",
    )  # fmt: skip
    if json:
        print_json(result)
        return
    table = (output / TABLE).read_text(encoding="utf-8")
    stdout().print(table, markup=False, soft_wrap=True, end="")
    say(f"Written to {output}; report.html shows training images: keep it where they may be kept.")


def _conditions(text: str | None) -> dict[str, str] | None:
    """``cancer=adenocarcinoma,benign=benign`` as a dictionary."""
    from medgen.errors import InputError

    if text is None:
        return None
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    if not parts or not all(name.strip() and sub.strip() for name, _, sub in parts):
        raise InputError(f"--conditions must be NAME=SUBFOLDER,..., got {text!r}")
    return {name.strip(): sub.strip() for name, _, sub in parts}


def _extractor(
    features: str, sha256: str | None, size: int, mean: str | None, std: str | None
) -> FeatureExtractor:
    """The package of this name, or the user's own file."""
    from medgen.errors import InputError
    from medgen.package import load_package

    path = Path(features)
    if sha256 is None and path.is_file():
        msg = f"{features} is a file of yours: its hash must be given"
        raise InputError(msg, "Give --features-sha256; `sha256sum FILE` prints it.")
    if (mean is None) != (std is None):
        raise InputError("--features-mean and --features-std go together")
    numbers: Any = [_three(text) for text in (mean, std)]
    if sha256 is None:
        load_package(features, "features")  # what is wrong with it is known without torch
    from medgen.features import FeatureExtractor

    if sha256 is None:
        return FeatureExtractor.load(features)
    return FeatureExtractor.from_file(
        path, sha256, image_size=size, mean=numbers[0], std=numbers[1]
    )


def _three(text: str | None) -> tuple[float, ...] | None:
    from medgen.errors import InputError

    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 3:
        raise InputError(f"expected three numbers R,G,B, got {text!r}")
    return found
