"""CT to MR and MR to CT on registered brain slices: every translation method in one table.

    python benchmarks/translation.py --data ct_mr_slices --runs runs/ct-mr --minutes 5 \
        --output benchmarks/results/translation_ct_mr.md

Trains each row for equally many minutes of one CPU thread (methods that learn one direction at a
time spend half of them on each), with the configurations in ``configs/benchmarks/ct-mr-*.yaml``;
what is trained already is not trained again, and an interrupted run goes on. Then it measures on
the held-out slices and writes the table as Markdown and, with every slice's numbers, as JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy import ndimage
from torch.nn import functional as F

from medgen.domain_sets import Domains, DomainsConfig
from medgen.metrics import bootstrap_interval
from medgen.metrics.paired import mean_absolute_error, psnr, ssim
from medgen.metrics.structure import structure
from medgen.training.build import build_method
from medgen.training.config import TrainingConfig, read_config
from medgen.training.loop import train

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "benchmarks"
DIRECTIONS = (("ct", "mr"), ("mr", "ct"))
Image = NDArray[np.float32]
Translate = Callable[[Image], Image]
# Name: heading, digits, whether more is better (None: to be compared with the true pair).
COLUMNS: dict[str, tuple[str, int, bool | None]] = {
    "mae": ("MAE", 4, False),
    "mae_head": ("MAE in the head", 4, False),
    "psnr": ("PSNR dB", 2, True),
    "ssim": ("SSIM", 3, True),
    "edges_kept": ("edges kept", 3, None),
    "edges_new": ("edges new", 3, None),
    "tissue_dice": ("tissue Dice", 3, None),
}


@dataclass(frozen=True)
class Row:
    """A method of the table.

    Attributes:
        learns: What it learns from.
        both: One training learns both directions.
        first: Configuration of a run to begin with, which gets half of the minutes.
    """

    learns: str
    both: bool
    first: str | None = None


ROWS: dict[str, Row] = {
    "unet_l1": Row("pairs", both=False),
    "pix2pix": Row("pairs", both=False),
    "cyclegan": Row("unpaired", both=True),
    "dualgan": Row("unpaired", both=True),
    "discogan": Row("unpaired", both=True),
    "cut": Row("unpaired", both=False),
    "stargan": Row("unpaired", both=True),
    "uaggan": Row("pairs, then unpaired", both=True, first="ct-mr-uaggan-paired"),
}


def trained(
    name: str, folder: Path, minutes: float, options: argparse.Namespace, changes: Sequence[str]
) -> Path:
    """The folder of a run that has had its minutes; trains it, or trains on."""
    settings = [f"data.folder={options.data}", f"seed={options.seed}", f"minutes={minutes}"]
    config = read_config(CONFIGS / f"{name}.yaml", [*settings, "threads=1", *changes])
    record = folder / "training.json"
    if record.is_file():
        found = json.loads(record.read_text(encoding="utf-8"))
        if found["finished"] and found["seconds"] >= 60 * minutes:
            return folder
    sys.stderr.write(f"training {folder.name} for {minutes:g} minutes\n")
    started = (folder / "checkpoint.safetensors").is_file()
    train(config, folder, resume=started, overwrite=not started, progress=False)
    return folder


def runs_of(row: str, options: argparse.Namespace) -> dict[tuple[str, str], Path]:
    """The run of each direction of a row."""
    entry, name = ROWS[row], f"ct-mr-{row.replace('_', '-')}"
    if entry.both:
        minutes, changes = options.minutes, []
        if entry.first:
            minutes /= 2
            folder = options.runs / entry.first
            first = trained(entry.first, folder, minutes, options, [])
            changes = [f"start_from={first / 'weights.safetensors'}"]
        folder = trained(name, options.runs / name, minutes, options, changes)
        return dict.fromkeys(DIRECTIONS, folder)
    found = {}
    for source, target in DIRECTIONS:
        folder = options.runs / f"{name}-{source}-to-{target}"
        changes = [f"data.source={source}", f"data.target={target}"]
        found[source, target] = trained(name, folder, options.minutes / 2, options, changes)
    return found


def translator(folder: Path, direction: tuple[str, str]) -> Translate:
    """A trained method as a function of slices ``(N, X, Y)`` in 0..1."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    config = TrainingConfig.model_validate({**record["config"], "start_from": None})
    settings = dict(config.config)
    data = config.data
    # A network of both directions; one that learns any direction is told by its planes.
    if data.get("source") not in {None, direction[0]}:
        settings["direction"] = "backward"
    method = build_method(config.model_copy(update={"config": settings})).eval()
    for part in method.training_only:
        setattr(method, part, None)
    method.load_state_dict(load_file(folder / "weights.safetensors"))
    domains = list(data["domains"])

    def run(slices: Image) -> Image:
        image = torch.from_numpy(slices)[:, None]
        if data.get("source") is None:
            wanted = torch.full((len(image),), domains.index(direction[1]))
            planes = F.one_hot(wanted, len(domains)).float()[..., None, None]
            image = torch.cat([image, planes.expand(-1, -1, *image.shape[2:])], dim=1)
        with torch.inference_mode():
            output: Image = method.predict(image)["output"][:, 0].clamp(0, 1).numpy()
        return output

    return run


def best_curve(source: Image, target: Image) -> Translate:
    """The mean target value of every source value, over all voxels of the training pairs."""
    level = np.round(source * 255).astype(int).ravel()
    count = np.bincount(level, minlength=256)
    mean = np.bincount(level, target.ravel(), minlength=256) / np.maximum(count, 1)
    curve = np.interp(np.arange(256), np.flatnonzero(count), mean[count > 0])
    return lambda slices: curve[np.round(slices * 255).astype(int)].astype(np.float32)


def head(first: Image, second: Image) -> NDArray[np.bool_]:
    """The largest filled region that is not background in one of two slices."""
    shown = ndimage.binary_opening((first > 0.1) | (second > 0.1), iterations=2)
    parts, count = ndimage.label(shown)
    if not count:
        return np.ones(first.shape, bool)
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    filled: NDArray[np.bool_] = ndimage.binary_fill_holes(parts == largest)
    return filled


def measured(source: Image, made: Image | None, truth: Image) -> list[dict[str, float | None]]:
    """The numbers of every slice; with nothing made, those of structure for the true pairs."""
    found = []
    for number, (given, wanted) in enumerate(zip(source, truth, strict=True)):
        values: dict[str, float | None] = {}
        if made is not None:
            inside = head(given, wanted)
            values = {
                "mae": mean_absolute_error(wanted, made[number]),
                "mae_head": mean_absolute_error(wanted, made[number], inside),
                "psnr": psnr(wanted, made[number], 1.0),
                "ssim": ssim(wanted, made[number], 1.0),
            }
        values |= vars(structure(given, wanted if made is None else made[number]))
        found.append(values)
    return found


def slices(data: Domains, domain: str, side: Any) -> tuple[list[str], Image]:
    """Names and images ``(N, X, Y)`` of one side of the split."""
    items = data.items(domain, side)
    return [name for name, _ in items], np.stack([image[0].numpy() for _, image in items])


def means(rows: list[dict[str, float | None]]) -> dict[str, float]:
    """The mean of each number over the slices where it is defined."""
    found = {}
    for name in COLUMNS:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            found[name] = float(np.mean(np.array(values, float)))
    return found


def line(name: str, rows: list[dict[str, float | None]], facts: tuple[str, str]) -> str:
    """One line of the table."""
    mean, cells = means(rows), []
    for column, (_, digits, _) in COLUMNS.items():
        text = f"{mean[column]:.{digits}f}" if column in mean else "–"
        if column == "mae_head" and column in mean:
            interval = bootstrap_interval(np.array([row[column] for row in rows], float), seed=0)
            text += f" [{interval.low:.3f}, {interval.high:.3f}]"
        cells.append(text)
    return f"| {name} | {' | '.join((*facts, *cells))} |"


def main() -> None:
    """Train, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds ct/ and mri/")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the training runs")
    parser.add_argument("--minutes", type=float, default=5.0, help="training of each row")
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True, help="Markdown file; JSON beside it")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    options.runs.mkdir(parents=True, exist_ok=True)
    found = {row: runs_of(row, options) for row in options.rows}

    config = DomainsConfig(folder=options.data, domains={"ct": "ct", "mr": "mri"})
    data = Domains(config)
    record: dict[str, Any] = {"seed": options.seed, "minutes": options.minutes}
    names = slices(data, "ct", "held_out")[0]
    text = introduction(options, data, names)
    for source, target in DIRECTIONS:
        given, truth = (slices(data, name, "held_out")[1] for name in (source, target))
        pairs = (slices(data, name, "train")[1] for name in (source, target))
        results = {
            "true pair": (measured(given, None, truth), ("", "")),
            "identity": (measured(given, given, truth), ("nothing", "0")),
            "best curve": (measured(given, best_curve(*pairs)(given), truth), ("pairs", "–")),
        }
        for row, runs in found.items():
            folder = runs[source, target]
            steps = json.loads((folder / "training.json").read_text(encoding="utf-8"))["step"]
            made = translator(folder, (source, target))(given)
            results[row] = (measured(given, made, truth), (ROWS[row].learns, str(steps)))
        text += table(f"{source.upper()} to {target.upper()}", results)
        record[f"{source}-{target}"] = {
            "slices": names,
            **{
                row: {"mean": means(values), "each": values} for row, (values, _) in results.items()
            },
        }
    sys.stdout.write("\n".join(text) + "\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(text) + "\n", encoding="utf-8")
    beside = options.output.with_suffix(".json")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def introduction(options: argparse.Namespace, data: Domains, names: list[str]) -> list[str]:
    """What the tables show and how they were made."""
    facts = data.facts
    return [
        "# CT to MR and MR to CT, method by method",
        "",
        f"`python benchmarks/translation.py --data ct_mr_slices --runs RUNS --minutes "
        f"{options.minutes:g} --seed {options.seed} --output FILE`",
        "",
        f"Registered CT and MR brain slices of the Harvard Whole Brain Atlas, 128 x 128, 0..1: "
        f"{facts['groups']} pairs to train on and, after a gap of {data.config.gap}, the last "
        f"{len(names)} to measure on ({names[0]} to {names[-1]}; no subject is on both sides). "
        f"Each row was trained for {options.minutes:g} minutes on one CPU thread for both "
        "directions together, all with narrow networks: papers train for days, so this compares "
        "methods at a small budget. *Steps* are those of the run behind the row.",
        "",
        "MAE, PSNR (range 1) and SSIM are means over slices; brackets: 95 % bootstrap interval "
        "over slices, too narrow because slices of a subject are alike. *Edges kept*, *edges new* "
        "and *tissue Dice* compare the result with the image it was made from "
        "(`medgen.metrics.structure`): a faithful result has the values of the true pair, and "
        "identity is perfect by definition. *Best curve* maps every intensity to its mean partner "
        "in the training pairs.",
        "",
    ]


def table(title: str, results: dict[str, tuple[Any, tuple[str, str]]]) -> list[str]:
    """One direction's table."""
    heads = " | ".join(heading for heading, _, _ in COLUMNS.values())
    return [
        f"## {title}",
        "",
        f"| method | learns from | steps | {heads} |",
        "|---|---|---|" + "---|" * len(COLUMNS),
        *(line(name, values, facts) for name, (values, facts) in results.items()),
        "",
    ]


if __name__ == "__main__":
    main()
