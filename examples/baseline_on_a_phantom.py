"""How far brightness alone goes: find a planted lesion without any training.

The `intensity` baseline ranks the voxels of the brain by brightness. On a FLAIR-like scan a lesion
is bright, so this is hard to beat, and every learned method should be measured against it.
Run it with the name of the picture to save: `python examples/baseline_on_a_phantom.py out.png`.
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np

from medgen import phantoms
from medgen.inference import Inference, predict_volume
from medgen.methods import build
from medgen.metrics import average_precision, best_dice
from medgen.preparation import Preparation
from medgen.scoring import Scoring, find, score_map


def main(picture: str) -> None:
    """Walk the path of a scan step by step: prepare, predict, score, go back, find."""
    phantom = phantoms.brain(
        (72, 88, 60), spacing_mm=2.0, contrast="flair", seed=1, lesion_radius_mm=9
    )

    prepared = Preparation(spacing_mm=None, normalisation="equalise").apply(phantom.image)
    method = build("intensity", {"spatial_dims": 3})
    outputs = predict_volume(method, prepared.image, prepared.mask, Inference(mode="3d"))
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    scoring = Scoring(evidence="score", median=3)
    scores = score_map(np.asarray(prepared.image), arrays, np.asarray(prepared.mask), scoring)
    anomaly = prepared.to_source(scores[None])[0]

    precision = average_precision(anomaly, phantom.lesion, phantom.brain)
    dice = best_dice(anomaly, phantom.lesion, phantom.brain)
    print(f"average precision {precision.value:.3f}, by chance {precision.prevalence:.3f}")
    print(f"best Dice {dice.value:.3f}, at the threshold that the truth itself picks")
    _, findings = find(anomaly, phantom.image.geometry, dice.threshold, phantom.brain, 100)
    print(f"{len(findings)} finding(s); the first measures {findings[0].volume_mm3 / 1000:.1f} ml")
    assert precision.value > 0.9

    middle = findings[0].slice_index[2]
    _, axes = plt.subplots(1, 3, figsize=(10, 4))
    panels = (("scan", phantom.image.voxels[0]), ("map", anomaly), ("truth", phantom.lesion))
    for axis, (title, image) in zip(axes, panels, strict=True):
        axis.imshow(image[:, :, middle].T, cmap="gray", origin="lower")
        axis.set_title(title)
        axis.axis("off")
    plt.tight_layout()
    plt.savefig(picture, dpi=80)


if __name__ == "__main__":
    main(sys.argv[1])
