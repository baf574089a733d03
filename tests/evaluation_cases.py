"""Folders of real and synthetic pictures for tests of the evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32


def picture(kind: int, seed: int, noise: int = 20) -> np.ndarray:
    """A bar ``(rows, columns)``: it lies if ``kind`` is 0, else it stands."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, noise, (SIDE, SIDE))
    start = random.integers(3, 20)
    bar = (slice(start, start + 6), slice(None))
    pixels[bar if kind == 0 else bar[::-1]] += 180
    return pixels.astype(np.uint8)


def real_folder(folder: Path, count: int = 40, first: int = 0) -> Path:
    """``lying`` and ``standing`` bars; two files a patient."""
    for kind, name in enumerate(("lying", "standing")):
        (folder / name).mkdir(parents=True)
        for number in range(count // 2):
            path = folder / name / f"{name[0]}{first + number // 2:03d}_{number % 2}.png"
            Image.fromarray(picture(kind, 1000 * kind + first + number)).save(path)
    return folder


def made_folder(folder: Path, count: int = 30, *, seed: int = 5000, names=("lying", "standing")):
    """As ``medgen synthesize`` writes it: ``images/`` and ``manifest.jsonl``."""
    (folder / "images").mkdir(parents=True)
    with (folder / "manifest.jsonl").open("w") as manifest:
        for index in range(count):
            kind = index % 2
            file = f"images/{index:05d}.png"
            Image.fromarray(picture(kind, seed + index)).save(folder / file)
            line = {"file": file, "index": index, "condition": names[kind], "model": "bars",
                    "model_version": "1.0.0", "model_sha256": "c" * 64, "truncation": 1.0,
                    "seed": 0}  # fmt: skip
            manifest.write(json.dumps(line) + "\n")
    return folder


def annotated_folder(folder: Path, patients: int = 6, depth: int = 6, first: int = 0) -> Path:
    """``.npz`` volumes of bright discs with their labels, one file a patient."""
    folder.mkdir(parents=True)
    rows, columns = np.indices((SIDE, SIDE))
    for patient in range(first, first + patients):
        random = np.random.default_rng(patient)
        centre = random.uniform(12, 20, (depth, 2, 1, 1))
        radius = random.uniform(4, 9, (depth, 1, 1))
        label = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2
        image = (random.integers(0, 30, label.shape) + 200 * label).astype(np.uint8)
        np.savez(folder / f"p{patient:02d}_scan.npz", image=image, label=label.astype(np.uint8))
    return folder
