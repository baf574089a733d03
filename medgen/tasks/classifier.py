"""Are synthetic images of the condition asked for? Classifiers that saw only real ones tell.

The held-out real images are dealt to four folds by group (patient). A classifier is trained on all
but one, tested on that one, which gives the ceiling, and on all synthetic images; so for every
fold. ``class_accuracy`` is that of a small convolutional network on the images,
``class_accuracy_features`` that of a logistic regression on the extractor's features, which needs
fewer images. No synthetic image and no image that the generator was trained on is used in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.tasks.image_set import ImageSet

Array = NDArray[Any]
FOLDS = 4
WIDTHS = (16, 32, 64, 64)
BATCH, RATE, DECAY = 32, 2e-3, 1e-2
# Penalty of the logistic regression, as C of the usual notation: penalty |w|^2 / (2 C).
INVERSE_PENALTY = 1.0


def class_accuracy(
    real: ImageSet,
    fake: ImageSet,
    features: dict[str, Array],
    *,
    steps: int = 300,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Both accuracies (mean over conditions, 0..1) beside the ceiling on real images.

    Args:
        real: Held-out real images with conditions.
        fake: Synthetic images with conditions of the same numbers.
        features: Of both, under ``real`` and ``fake``.
        steps: Of training the network.
        seed: Of folds, weights and batches.
        device: Where to compute.

    Raises:
        InputError: Fewer than two conditions, or a condition with fewer than two groups.
    """
    if real.condition is None or fake.condition is None:
        raise InputError("class accuracy needs the conditions of real and synthetic images")
    folds = folds_of(real.condition, real.groups, seed)
    wanted, asked = real.condition, fake.condition
    count = int(max(wanted.max(), asked.max())) + 1
    hits: dict[str, list[tuple[Array, Array]]] = {"network": [], "features": []}
    for number, test in enumerate(folds):
        train = np.concatenate([fold for n, fold in enumerate(folds) if n != number])
        network = train_network(
            real.images[train], wanted[train], count, steps=steps, seed=seed, device=device
        )
        guess = logistic_regression(features["real"][train], wanted[train])
        hits["network"].append(
            (network(real.images[test]) == wanted[test], network(fake.images) == asked)
        )
        hits["features"].append(
            (guess(features["real"][test]) == wanted[test], guess(features["fake"]) == asked)
        )
    tested = wanted[np.concatenate(folds)]
    result = {}
    for name, found in hits.items():
        on_real = np.concatenate([row[0] for row in found])
        on_fake = np.mean([row[1] for row in found], axis=0)
        value, low, high = _accuracy(on_fake, asked, seed)
        ceiling, ceiling_low, ceiling_high = _accuracy(on_real, tested, seed)
        key = "class_accuracy" if name == "network" else "class_accuracy_features"
        result[key] = {
            "value": value,
            "interval": [low, high],
            "floor": ceiling,
            "floor_interval": [ceiling_low, ceiling_high],
            "n": [len(real), len(fake)],
            "better": "higher",
        }
    return result


def folds_of(condition: Array, groups: Sequence[str] | None, seed: int) -> list[NDArray[np.intp]]:
    """Indices of parts that share no group and have about equally many of each condition.

    There are four parts, or as many as the condition with the fewest groups has.

    Raises:
        InputError: Fewer than two conditions, or a condition with fewer than two groups.
    """
    names = np.arange(len(condition)) if groups is None else np.asarray(groups)
    kinds = np.unique(condition)
    if len(kinds) < 2:
        msg = f"class accuracy needs at least two conditions, got {len(kinds)}"
        raise InputError(msg, "Give real images of every condition, one subfolder each.")
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    content = [np.bincount(condition[m], minlength=int(kinds[-1]) + 1) for m in members]
    available = (np.array(content)[:, kinds] > 0).sum(0).tolist()
    if min(available) < 2:
        poor = int(kinds[int(np.argmin(available))])
        msg = f"condition number {poor} has {min(available)} held-out groups: at least 2 are needed"
        raise InputError(msg, "Give real images of more patients.")
    parts: list[list[Array]] = [[] for _ in range(min(FOLDS, *available))]
    counts = np.zeros((len(parts), int(kinds[-1]) + 1))
    for number in np.random.default_rng(seed).permutation(len(members)):
        fold = int((counts @ content[number]).argmin())
        parts[fold].append(members[number])
        counts[fold] += content[number]
    return [np.concatenate(part) for part in parts]


def _accuracy(hits: Array, condition: Array, seed: int) -> tuple[float, float, float]:
    """Mean over conditions of the share of hits, and a 95 % bootstrap interval over images."""
    random = np.random.default_rng(seed)
    kinds = [hits[condition == kind].astype(np.float64) for kind in np.unique(condition)]
    drawn = [k[random.integers(len(k), size=(500, len(k)))].mean(1) for k in kinds]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return float(np.mean([k.mean() for k in kinds])), float(low), float(high)


class Classifier:
    """Images ``(N, C, *spatial)`` to the number of their condition ``(N,)``."""

    def __init__(self, network: nn.Module, device: str) -> None:
        self.network, self.device = network.eval(), device

    def scores(self, images: Array) -> Array:
        """Log-odds ``(N, conditions)``, up to a number for each image."""
        parts = torch.from_numpy(np.ascontiguousarray(images)).split(2 * BATCH)
        with torch.inference_mode():
            found = [self.network(part.to(self.device)).cpu() for part in parts]
        return torch.cat(found).numpy()

    def __call__(self, images: Array) -> Array:
        """Number of the likeliest condition of each."""
        found: Array = self.scores(images).argmax(1)
        return found


def train_network(
    images: Array, condition: Array, count: int, *, steps: int, seed: int, device: str
) -> Classifier:
    """A small convolutional network, 2-D or 3-D; every condition counts the same in its loss."""
    x, y = torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(condition).long()
    with torch.random.fork_rng(devices=[torch.device(device)] if "cuda" in device else []):
        torch.manual_seed(seed)
        network = _network(x.shape[1], x.ndim - 2, count)
        return train_classifier(network, x, y, count, steps=steps, device=device)


def train_classifier(
    network: nn.Module,
    images: Tensor,
    condition: Tensor,
    count: int,
    *,
    steps: int,
    device: str,
    rate: float = RATE,
    axes: Sequence[int] | None = None,
) -> Classifier:
    """Train any network to tell conditions apart; every condition counts the same in its loss.

    Args:
        network: Images to ``(B, count)``.
        images: ``(N, C, *spatial)``.
        condition: Number of the condition of each ``(N,)``.
        count: How many conditions there are.
        steps: Batches, drawn with torch's global generator.
        device: Where to compute.
        rate: Learning rate, which falls to 0 along a cosine.
        axes: Of the image, along which images are mirrored at random; None: all of space.
    """
    present = torch.bincount(condition, minlength=count)
    weight = torch.where(present > 0, len(condition) / present.clamp(min=1), 0.0)
    network = network.to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x, y, weight = images.to(device), condition.to(device), weight.to(device)
    mirrored = range(2, x.ndim) if axes is None else axes
    for _ in range(steps):
        chosen = torch.randint(len(x), (BATCH,), device=device)
        shown = _mirrored(x[chosen], mirrored)
        loss = F.cross_entropy(network(shown), y[chosen], weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Classifier(network, device)


def _network(channels: int, dims: int, count: int) -> nn.Module:
    convolution = nn.Conv2d if dims == 2 else nn.Conv3d
    pool = nn.AdaptiveAvgPool2d if dims == 2 else nn.AdaptiveAvgPool3d
    layers: list[nn.Module] = []
    for width in WIDTHS:
        layers += [convolution(channels, width, 3, stride=2, padding=1)]
        layers += [nn.GroupNorm(8, width), nn.LeakyReLU(0.1)]
        channels = width
    return nn.Sequential(
        *layers, pool(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(channels, count)
    )


def _mirrored(images: Tensor, axes: Iterable[int]) -> Tensor:
    """Each image mirrored along each of these axes, or not, at random."""
    shape = (len(images), *[1] * (images.ndim - 1))
    for axis in axes:
        flip = torch.rand(shape, device=images.device) < 0.5
        images = torch.where(flip, images.flip(axis), images)
    return images


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """Features ``(N, D)`` to condition numbers.

    Attributes:
        kinds: Numbers of the conditions that it knows.
        mean: Subtracted from features, which are then divided by
        deviation: this, and multiplied with
        weights: ``(D, kinds)``, before
        bias: ``(kinds,)`` is added.
    """

    kinds: Array
    mean: Array
    deviation: Array
    weights: Array
    bias: Array

    def scores(self, values: Array) -> Array:
        """Log-odds ``(N, kinds)``, up to a number for each row."""
        found: Array = ((values - self.mean) / self.deviation) @ self.weights + self.bias
        return found

    def __call__(self, values: Array) -> Array:
        """Number of the likeliest condition of each row."""
        found: Array = self.kinds[self.scores(values).argmax(1)]
        return found


def logistic_regression(
    features: Array, condition: Array, *, standardise: bool = True
) -> LogisticRegression:
    """Fit a logistic regression.

    Args:
        features: ``(N, D)``.
        condition: Numbers ``(N,)``.
        standardise: Bring each feature to mean 0 and deviation 1 first; else the caller has.
    """
    size = features.shape[1]
    mean = features.mean(0) if standardise else np.zeros(size)
    deviation = features.std(0) + 1e-9 if standardise else np.ones(size)
    kinds = np.unique(condition)
    x = torch.from_numpy((features - mean) / deviation)
    y = torch.from_numpy(np.searchsorted(kinds, condition))
    weights = torch.zeros(x.shape[1], len(kinds), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(kinds), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        error = F.cross_entropy(x @ weights + bias, y, reduction="sum")
        loss: Tensor = error + weights.square().sum() / (2 * INVERSE_PENALTY)
        loss.backward()
        return loss

    optimizer.step(step)
    found = weights.detach().numpy(), bias.detach().numpy()
    return LogisticRegression(kinds, mean, deviation, *found)
