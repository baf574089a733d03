"""Monitors of adversarial training: each looks for one way to fail and says what to do about it.

They watch the numbers of every step and, at each validation, a fixed batch of generated images
beside a fixed batch of training images. They never draw random numbers, so training does not
change by being watched. What each means, and how it is told:

- ``collapse``: the images are (nearly) all the same. Their mean distance from each other, within
  each condition, is a small part of that of training images.
- ``missing_modes``: the images look real but show only some kinds. Most lie among training images,
  yet few training images have one among their nearest neighbours (precision and coverage:
  Kynkäänniemi et al. 2019; Naeem et al. 2020).
- ``critic_overpowers``: the critic is right about nearly every image, and sure of it, for long
  (Arjovsky and Bottou 2017). A Wasserstein critic may be: its loss has no floor, and it never
  triggers this.
- ``vanishing_gradients``: next to nothing reaches the generator any more.

Distances are between images reduced to at most 16 (in 3-D 8) voxels a side: enough to tell kinds
of images apart, and cheap. They say nothing about fine detail.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Steps whose values are judged together, and how many such windows make "long".
WINDOW = 50
LONG_OVERPOWERED, LONG_VANISHED = 10, 4
SURE_ACCURACY, SURE_LOSS = 0.98, 0.05
# The generator's gradient has vanished below this part of what it was, below this part of it if the
# critic is right about so many images, or below this at all.
VANISHED_PART, VANISHED_PART_UNDER_CRITIC, STRONG_CRITIC = 1e-3, 1e-2, 0.95
VANISHED = 1e-7
# Looks in a row that must agree, and over how many steps: a generator needs some to begin.
PATIENCE, LONG_ALIKE = 3, 2000
LEAST_DIVERSITY = 0.2
# Images all near the mean of the training images are near to most of them, in many dimensions:
# which kinds are missing can be told only of images that differ.
DIVERSE, LEAST_PRECISION, LEAST_COVERAGE = 0.5, 0.75, 0.55
NEIGHBOURS, LEAST_RADIUS = 5, 0.1
REDUCED = {2: 16, 3: 8}

REMEDIES = {
    "collapse": "Give the critic less (augmentation, a smaller critic_rate), or use a loss that "
    "resists collapse (wgan_gp, or hinge with spectral_norm); look at the newest image grid.",
    "missing_modes": "Train longer, with a larger batch_size; if it stays, use loss wasserstein "
    "with penalty wgan_gp, or penalty r1.",
    "critic_overpowers": "Use augmentation: adaptive or diffaugment, penalty: r1, spectral_norm, a "
    "smaller critic_rate, or more images.",
    "vanishing_gradients": "Use loss: non_saturating (or hinge, wasserstein with a penalty), and a "
    "weaker critic (smaller critic_rate, instance_noise).",
    "not_finite": "Start again with a lower learning rate or with grad_clip.",
}


class Finding(NamedTuple):
    """Something wrong: its ``kind``, a key of :data:`REMEDIES`, and what was seen."""

    kind: str
    message: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        return REMEDIES[self.kind]


class Health:
    """Watches one run.

    Args:
        real: Training images ``(N, C, *spatial)``.
        condition: Their conditions ``(N,)``, if there are any.
    """

    def __init__(self, real: Tensor, condition: Tensor | None = None) -> None:
        self._real, self._condition = reduced(real), condition
        self._window: dict[str, list[float]] = defaultdict(list)
        self._largest_gradient = 0.0
        self._in_a_row: dict[str, int] = defaultdict(int)
        self._since: dict[str, int] = {}

    def observe(self, values: Mapping[str, float]) -> list[Finding]:
        """Take in the values of one step; gives what has now lasted too long."""
        for name in ("part/critic/accuracy", "loss/critic", "gradient/generator"):
            if name in values:
                self._window[name].append(values[name])
        if max(map(len, self._window.values()), default=0) < WINDOW:
            return []
        window, self._window = self._window, defaultdict(list)
        return [
            finding for finding in (self._overpowered(window), self._vanished(window)) if finding
        ]

    def _overpowered(self, window: Mapping[str, list[float]]) -> Finding | None:
        if not window.get("part/critic/accuracy") or not window.get("loss/critic"):
            return None
        accuracy, loss = fmean(window["part/critic/accuracy"]), fmean(window["loss/critic"])
        wrong = accuracy > SURE_ACCURACY and 0 <= loss < SURE_LOSS
        if not self._lasts("critic_overpowers", wrong, LONG_OVERPOWERED):
            return None
        steps = WINDOW * LONG_OVERPOWERED
        return Finding(
            "critic_overpowers",
            f"for {steps} steps the critic told {100 * accuracy:.1f} % of the images apart, at a "
            f"loss of {loss:.2g}: the generator learns nothing from it",
        )

    def _vanished(self, window: Mapping[str, list[float]]) -> Finding | None:
        if not window.get("gradient/generator"):
            return None
        gradients = sorted(window["gradient/generator"])
        gradient = gradients[len(gradients) // 2]
        # Not the very largest: single steps can be hundreds of times as steep.
        self._largest_gradient = max(self._largest_gradient, gradients[4 * len(gradients) // 5])
        accuracy = fmean(window.get("part/critic/accuracy") or [0.0])
        part = VANISHED_PART_UNDER_CRITIC if accuracy > STRONG_CRITIC else VANISHED_PART
        wrong = gradient < max(VANISHED, part * self._largest_gradient)
        if not self._lasts("vanishing_gradients", wrong, LONG_VANISHED):
            return None
        return Finding(
            "vanishing_gradients",
            f"for {WINDOW * LONG_VANISHED} steps the generator's gradient has had a norm of about "
            f"{gradient:.2g}; it was {self._largest_gradient:.2g}",
        )

    def look(self, made: Tensor, step: int) -> tuple[dict[str, float], list[Finding]]:
        """Compare as many generated images as there are real ones, of the same conditions.

        Args:
            made: ``(N, C, *spatial)``.
            step: Finished steps.

        Returns:
            ``health/diversity``, ``health/precision`` and ``health/coverage``, each 1 or about 1
            for more training images and 0 at worst; and what was found.
        """
        fake = reduced(made)
        diversity = self._diversity(fake)
        precision, coverage = precision_and_coverage(self._real, fake)
        found = []
        if self._lasts("collapse", diversity < LEAST_DIVERSITY, PATIENCE, step):
            found.append(
                Finding(
                    "collapse",
                    f"generated images differ from each other {diversity:.2f} times as much as "
                    "training images do",
                )
            )
        partial = (
            diversity >= DIVERSE and precision >= LEAST_PRECISION and coverage < LEAST_COVERAGE
        )
        if self._lasts("missing_modes", partial, PATIENCE, step):
            found.append(
                Finding(
                    "missing_modes",
                    f"{100 * precision:.0f} % of the generated images lie among training images, "
                    f"but only {100 * coverage:.0f} % of the training images have one near",
                )
            )
        values = {"diversity": diversity, "precision": precision, "coverage": coverage}
        return {f"health/{name}": value for name, value in values.items()}, found

    def _diversity(self, fake: Tensor) -> float:
        """Mean distance between two generated images of one condition, relative to real ones."""
        pairs = torch.ones(len(fake), len(fake), dtype=torch.bool, device=fake.device).triu(1)
        if self._condition is not None:
            pairs &= self._condition[:, None] == self._condition
        between = distances(fake, fake)[pairs], distances(self._real, self._real)[pairs]
        made, real = (float(found.mean()) if pairs.any() else 0.0 for found in between)
        return made / real if real > 0 else math.inf

    def _lasts(self, kind: str, wrong: bool, times: int, step: int | None = None) -> bool:
        """Whether something has been wrong for so many times in a row (and for long)."""
        self._in_a_row[kind] = self._in_a_row[kind] + 1 if wrong else 0
        if step is None:
            return self._in_a_row[kind] >= times
        if self._in_a_row[kind] <= 1:
            self._since[kind] = step
        return self._in_a_row[kind] >= times and step - self._since[kind] >= LONG_ALIKE


def reduced(images: Tensor) -> Tensor:
    """Images ``(N, C, *spatial)`` as vectors ``(N, features)`` of a coarse copy, in float32."""
    dims = images.ndim - 2
    size: Any = tuple(min(n, REDUCED[dims]) for n in images.shape[2:])
    pool = F.adaptive_avg_pool2d if dims == 2 else F.adaptive_avg_pool3d
    return pool(images.detach().float(), size).flatten(1)


def distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances ``(N, M)`` of vectors, exact where they are small."""
    return torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")


def precision_and_coverage(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """How many fake vectors lie near real ones, and how many real ones have a fake one near.

    Near is within the distance of a real vector's fifth nearest real neighbour, but at least a
    tenth of the mean distance between two real ones: within narrow clusters, missing the fifth
    neighbour does not count as missing the cluster.

    Args:
        real: ``(N, features)``.
        fake: ``(M, features)``.
    """
    neighbours = min(NEIGHBOURS, len(real) - 1)
    between = distances(real, real)
    # The nearest is the vector itself.
    radius = between.kthvalue(neighbours + 1, dim=1).values.clamp(min=LEAST_RADIUS * between.mean())
    near = distances(real, fake) <= radius[:, None]
    return float(near.any(0).float().mean()), float(near.any(1).float().mean())
