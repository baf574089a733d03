"""Folders of bars and tiny networks trained on them, for tests of pretrain, probe and latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation_cases import real_folder

from medgen.tasks.train import train
from medgen.training.config import checked_config

TINY: dict[str, dict[str, Any]] = {
    "mae": {"features": [8, 8]},
    "vae": {"features": [8, 8], "latent": "dense", "latent_channels": 3, "image_size": [32, 32]},
    "mlp_ae": {"hidden": [16], "image_size": [32, 32]},
    "selfsup": {"view_size": 32, "widths": [8, 8, 8, 8], "dimension": 8, "projector": 8},
}
PATTERN = "^([^_]+)_"


def bars(folder: Path, count: int = 48) -> Path:
    """``lying`` and ``standing`` bars, two files a patient, 32 pixels wide."""
    return real_folder(folder, count)


def trained(folder: Path, images: Path, method: str, steps: int = 2, **config: Any) -> Path:
    """A run on three quarters of the patients."""
    data: dict[str, Any] = {
        "folder": str(images), "group_pattern": PATTERN, "validation_fraction": 0.25, "size": 32,
    }  # fmt: skip
    if method == "selfsup":
        data |= {"kind": "images", "channels": 3, "convert": True}
    else:
        preparation = {"spacing_mm": None, "margin_mm": 0, "normalisation": "eight_bits"}
        data |= {"kind": "normals", "anomalies": {}, "preparation": preparation}
    dims = {} if method == "selfsup" else {"spatial_dims": 2}
    values: dict[str, Any] = {
        "name": "tiny", "method": method, "config": {**dims, **TINY[method], **config},
        "data": data, "steps": steps, "batch_size": 8,
    }  # fmt: skip
    train(images, checked_config(values, "test"), folder, device="cpu", progress=False)
    return folder
