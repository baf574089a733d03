"""Two numbers for a head: a fully connected autoencoder lays out slices of two MR contrasts.

It is never told which slice has which contrast. How often does a slice's nearest neighbour in the
plane have the same one? Run it with the name of the picture to save:
`python examples/plane_of_heads.py plane.png`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from medgen.phantoms import brain
from medgen.tasks.latent import latent_space
from medgen.tasks.latent_files import SCATTER, latent_files
from medgen.tasks.trained import open_trained
from medgen.training import train
from medgen.training.config import checked_config

SIDE, HEADS = 32, 60


def slices(folder: Path) -> Path:
    """Pictures of heads, a subfolder for each contrast."""
    for contrast in ("t1", "t2"):
        (folder / contrast).mkdir(parents=True)
        for seed in range(HEADS):
            head = brain((SIDE, SIDE), spacing_mm=6.5, seed=seed, contrast=contrast).image
            grey = np.clip(head.voxels[0] / head.voxels.max() * 255, 0, 255).astype(np.uint8)
            Image.fromarray(grey.T).save(folder / contrast / f"{contrast}_{seed:02d}.png")
    return folder


def main(picture: str) -> None:
    """Train, code, measure, draw."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = slices(work / "images")
        settings = {
            "name": "plane", "method": "mlp_ae", "steps": 300, "batch_size": 24,
            "config": {"spatial_dims": 2, "image_size": [SIDE, SIDE], "hidden": [128, 32]},
            "data": {
                "kind": "normals", "folder": str(images), "size": SIDE, "anomalies": {},
                "preparation": {"spacing_mm": None, "margin_mm": 0, "normalisation": "eight_bits"},
            },
        }  # fmt: skip
        train(checked_config(settings, "example"), work / "run", progress=False)
        space = latent_space(open_trained(work / "run"), images, {})
        apart = np.linalg.norm(space.codes[:, None] - space.codes[None], axis=2)
        np.fill_diagonal(apart, np.inf)
        labels = space.images.labels
        share = float((labels[apart.argmin(1)] == labels).mean())
        print(f"nearest neighbours of the same contrast: {share:.2f} (chance 0.5)")
        assert share > 0.9
        latent_files(str(work / "run"), images, work / "latent", {}, device="cpu")
        shutil.copyfile(work / "latent" / SCATTER, picture)


if __name__ == "__main__":
    main(sys.argv[1])
