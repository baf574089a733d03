"""Trained generators of one and the same tile set, compared on held-out originals.

Every run is sampled uncurated (the first latents of one seed, equally many of every condition, no
truncation) and measured by `medgen.tasks.evaluate_synthesis.measure` against the tiles that its
configuration holds out, which no run has seen. The untrained generator of the first run stands
beside them. Writes a table, and a sheet of generated images for each run.

    python benchmarks/colon_histology_table.py --data LC25000_TILES --device cuda \
        --run stylegan2=runs/colon-histology --run dcgan=runs/colon-dcgan \
        --run vaegan=runs/colon-vaegan --output benchmarks/results/colon_histology.md
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from medgen.devices import resolve_device
from medgen.errors import InputError
from medgen.features import FeatureExtractor
from medgen.image_sets import ImagesConfig, condition_names, read_image, resampled, split_images
from medgen.methods import build
from medgen.report.contact_sheet import Tile, contact_sheet
from medgen.tasks.evaluate_synthesis import measure, refuse_other_extractor
from medgen.tasks.image_set import ImageSet

UNTRAINED = "untrained"
SHEET_ROWS, SHEET_COLUMNS = 4, 8  # rows for each condition
COLUMNS = (
    # title, metric, factor
    ("FID", "fid", 1), ("KID x 1000", "kid", 1000), ("precision", "precision", 1),
    ("recall", "recall", 1), ("density", "density", 1), ("coverage", "coverage", 1),
    ("MS-SSIM", "ms_ssim", 1), ("copy rate", "copy_rate", 1),
    ("class accuracy", "class_accuracy", 1), ("by features", "class_accuracy_features", 1),
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A generator in evaluation mode, and what its training took."""

    name: str
    method: Any
    images: int
    minutes: float
    parameters: int


def load_run(name: str, folder: Path, device: str) -> tuple[Run, dict[str, Any]]:
    """A training run's averaged generator, and the run's configuration."""
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no training run: {error}") from error
    config = record["config"]
    method: Any = build(config["method"], config["config"])
    for part in method.training_only:
        setattr(method, part, None)
    method.load_state_dict(load_file(folder / "weights.safetensors"))
    seen = record["step"] * config["batch_size"]
    of_generator = sum(weight.numel() for weight in method.parameters())
    run = Run(name, method.to(device).eval(), seen, record["seconds"] / 60, of_generator)
    return run, config


def refuse_other_splits(configs: list[dict[str, Any]]) -> None:
    """Runs that hold out other images may have seen those they are measured against."""
    keys = ("conditions", "validation_fraction", "group_pattern", "exclude", "channels")
    splits = [{key: config["data"].get(key) for key in keys} for config in configs]
    for split in splits[1:]:
        different = [key for key in keys if split[key] != splits[0][key]]
        if different:
            raise InputError(f"the runs were trained with different data.{different[0]}")


def untrained(config: dict[str, Any], device: str) -> Run:
    """The first run's generator with random weights."""
    torch.manual_seed(0)
    method: Any = build(config["method"], config["config"])
    for part in method.training_only:
        setattr(method, part, None)
    count = sum(weight.numel() for weight in method.parameters())
    return Run(UNTRAINED, method.to(device).eval(), 0, 0.0, count)


def real_images(data: dict[str, Any], size: tuple[int, ...]) -> tuple[ImageSet, ImageSet]:
    """Training and held-out images with conditions and groups, of the split that runs share."""
    settings = {key: value for key, value in data.items() if key in ImagesConfig.model_fields}
    sets = []
    for items in split_images(ImagesConfig.model_validate(settings)):
        pixels = [resampled(torch.from_numpy(read_image(item.path)[0]), size) for item in items]
        images = torch.stack(pixels).float() / 127.5 - 1
        condition = np.array([item.condition for item in items])
        sets.append(ImageSet(images.numpy(), condition, groups=[item.group for item in items]))
    return sets[0], sets[1]


@torch.inference_mode()
def sampled(
    run: Run, conditions: int, count: int, size: tuple[int, ...], seed: int, device: str
) -> ImageSet:
    """``count`` images of every condition, in turn, at one size and rounded to 8 bits."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count * conditions, *run.method.latent_shape, generator=generator)
    condition = torch.arange(len(latents)) % conditions
    images = []
    for latent, number in zip(latents.split(32), condition.split(32), strict=True):
        made = run.method.generate(latent.to(device), number.to(device))["image"]
        images.append(made.float().clamp(-1, 1).cpu())
    pixels = ((torch.cat(images) + 1) * 127.5).round().to(torch.uint8)
    pixels = torch.stack([resampled(image, size) for image in pixels]).float()
    return ImageSet((pixels / 127.5 - 1).numpy(), condition.numpy())


def draw(images: ImageSet, names: tuple[str, ...], path: Path, title: str) -> None:
    """The first images of every condition, a block of rows for each."""
    assert images.condition is not None
    tiles = []
    for number, name in enumerate(names):
        chosen = np.flatnonzero(images.condition == number)[: SHEET_ROWS * SHEET_COLUMNS]
        for place, index in enumerate(chosen):
            picture = np.round((images.images[index].transpose(2, 1, 0) + 1) * 127.5)
            tiles.append(Tile(picture.astype(np.uint8), name if place == 0 else ""))
    sheet = io.BytesIO()
    subtitle = f"uncurated; {', '.join(names)}"
    contact_sheet(tiles, sheet, title=title, subtitle=subtitle, columns=SHEET_COLUMNS)
    picture = Image.open(sheet).convert("RGB")
    picture.thumbnail((700, 1400))
    picture.save(path, quality=68, method=6)


def number(row: dict[str, Any] | None, key: str, factor: float) -> str:
    """A cell: the value, with its interval if it has one."""
    if row is None or row.get(key) is None:
        return ""
    text = f"{factor * row[key]:.3g}"
    span = {"value": "interval", "floor": "floor_interval"}.get(key, "")
    if row.get(span):
        low, high = (factor * end for end in row[span])
        text += f" ({low:.3g} to {high:.3g})"
    return text


def table(results: list[tuple[Run, dict[str, Any]]]) -> list[str]:
    """Markdown: one line for each run, the floor, and the training images."""
    titles = [title for title, _, _ in COLUMNS]
    header = ["generator", "images seen", "minutes", "parameters", *titles, "FID at floor's N"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]

    def line(first: list[str], metrics: dict[str, Any], key: str, last: str) -> str:
        cells = [number(metrics.get(name), key, factor) for _, name, factor in COLUMNS]
        return f"| {' | '.join([*first, *cells, last])} |"

    for run, result in results:
        metrics = result["metrics"]
        size = f"{run.parameters / 1e6:.1f} M"
        first = [run.name, str(run.images), f"{run.minutes:.1f}", size]
        lines.append(line(first, metrics, "value", f"{metrics['fid']['at_floor']:.3g}"))
    metrics = results[0][1]["metrics"]
    floor = {name: row for name, row in metrics.items() if name not in {"fid", "kid"}}
    lines.append(line(["*real, held out*", "", "", ""], floor, "floor",
                      f"{metrics['fid']['floor']:.3g}"))  # fmt: skip
    lines.append(line(["*training images*", "", "", ""], metrics, "training", ""))
    return lines


def main() -> None:
    """Sample, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", type=Path, help="folder of the tiles; else as in the run")
    parser.add_argument("--samples", type=int, default=300, help="of each condition")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--features", default="medgen-features")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, required=True, help="Markdown; sheets lie beside it")
    options = parser.parse_args()
    device = resolve_device(options.device)

    loaded = []
    for text in options.run:
        name, _, folder = text.partition("=")
        loaded.append(load_run(name, Path(folder), device))
    runs, config = [run for run, _ in loaded], loaded[0][1]
    refuse_other_splits([config for _, config in loaded])
    runs.append(untrained(config, device))
    data = config["data"] | ({"folder": str(options.data)} if options.data else {})
    size = tuple(runs[0].method.image_size)
    train, held_out = real_images(data, size)
    names = condition_names(
        ImagesConfig.model_validate({key: data[key] for key in ("folder", "conditions")})
    )
    extractor = FeatureExtractor.load(options.features)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for run in runs:
        fake = sampled(run, len(names), options.samples, size, options.seed, device)
        sheet = options.output.with_name(f"{options.output.stem}_{run.name}.webp")
        draw(fake, names, sheet, run.name)
        result = measure(held_out, fake, train, extractor, condition_names=names, device=device)
        results.append((run, result))
        print(table(results)[-3], flush=True)
    refuse_other_extractor([(run.name, result) for run, result in results])
    described = extractor.describe()
    words = " ".join(f"--run {run.name}=..." for run in runs[:-1])
    lines = [
        "# Generators of colon histology tiles, compared",
        "",
        f"`python benchmarks/colon_histology_table.py {words} --samples {options.samples} "
        f"--seed {options.seed}`",
        "",
        f"{options.samples} uncurated images of each of {', '.join(names)}, without truncation, "
        f"against {len(held_out)} held-out tiles of {results[0][1]['groups']} originals that no "
        f"run has seen; {len(train)} training tiles. Features: {described['name']}, SHA-256 "
        f"{described['sha256'][:16]}, {described['preprocessing']}. All at {size[0]} pixels; "
        f"larger images are shrunk first. Device: {device}.",
        "",
        *table(results),
        "",
        "Brackets: 95 % intervals. FID has a bias that grows as sets shrink: *real, held out* is "
        "the distance of two halves of the held-out tiles that share no original, to be compared "
        "with the last column, the synthetic images at the same size. *training images*: what "
        "copying them would get. Copy rate: share of images nearer to a training tile than 95 % of "
        "the held-out tiles are. Class accuracy: of classifiers trained on held-out real tiles; "
        "in the row of the real ones, on the other half of these. Minutes: of training on the "
        "machine of each run. Parameters: of the generator.",
        "",
        *(f"![{run.name}]({options.output.stem}_{run.name}.webp)" for run in runs),
    ]
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
