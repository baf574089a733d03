"""Annotated brain slices of `brain-mr-annotated` against drawn slices of held-out anatomies.

The model learned from images that are drawn from label maps, so drawn images are also what it is
compared with: this says how well it imitates the drawing, not how real the drawing is.

    python benchmarks/annotated_brains.py --run runs/brain-mr-annotated \
        --output benchmarks/results/annotated_brains.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import medgen
from medgen.features import FeatureExtractor
from medgen.methods import build
from medgen.tasks.evaluate_synthesis import measure
from medgen.tasks.image_set import ImageSet
from medgen.training.batches import build_source
from medgen.training.config import TrainingConfig

NAMES = ("fid", "kid", "precision", "recall", "density", "coverage", "ms_ssim", "copy_rate",
         "class_accuracy", "class_accuracy_features")  # fmt: skip


def drawn(take: object, count: int, batch_size: int, groups: str) -> ImageSet:
    """Drawn slices with their conditions; every batch is a group of its own."""
    batches = [take(n) for n in range(-(-count // batch_size))]  # type: ignore[operator]
    images = np.concatenate([batch["image"].numpy() for batch in batches])
    conditions = np.concatenate([batch["condition"].numpy() for batch in batches])
    names = [f"{groups}{n}" for n, batch in enumerate(batches) for _ in batch["image"]]
    return ImageSet(images, conditions, groups=names)


def main() -> None:
    """Draw, make, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="training run; says the data")
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads((options.run / "training.json").read_text(encoding="utf-8"))
    config = TrainingConfig.model_validate(record["config"])
    source = build_source(config, build(config.method, config.config))
    size = config.batch_size
    held_out = drawn(source.validation_batch, options.images, size, "held-out")
    train = drawn(source.batch, options.images, size, "training")
    made = list(medgen.synthesize("brain-mr-annotated", n=options.images, seed=options.seed))
    number = {name: n for n, name in enumerate(source.condition_names)}
    fake = ImageSet(
        np.stack([one.image for one in made]), np.array([one.sample.code.condition for one in made])
    )
    extractor = FeatureExtractor.load("medgen-features")
    result = measure(held_out, fake, train, extractor, condition_names=tuple(number))
    lines = [
        "# Annotated brain slices",
        "",
        f"`python benchmarks/annotated_brains.py --run RUN --images {options.images} "
        f"--seed {options.seed}`",
        "",
        f"{len(fake)} slices of `brain-mr-annotated` against {len(held_out)} slices drawn from 3 "
        f"held-out label maps; {len(train)} training slices. Features: medgen-features, SHA-256 "
        f"{extractor.sha256[:16]}. KID is times 1000. Class: one of nine.",
        "",
        "| metric | synthetic | at the floor's N | held-out halves | training images |",
        "|---|---|---|---|---|",
    ]
    for name in NAMES:
        row = result["metrics"][name]
        factor = 1000 if name == "kid" else 1
        cells = [row.get(key) for key in ("value", "at_floor", "floor", "training")]
        texts = ["" if cell is None else f"{factor * cell:.3g}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
