"""Train on synthetic, test on real: is a segmentation network any good that learned from fakes?

A small U-Net (Ronneberger et al. 2015; MONAI's BasicUNet) is trained on each set of annotated
images for the same number of steps with the same augmentation, and measured on real patients
that no set holds. The unit of every statistic is the patient: Dice is computed over all images of a
patient together, and averaged over labels and over training seeds before patients are compared.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.errors import InputError, LeakageError
from medgen.metrics import bootstrap_interval, dice
from medgen.tasks.image_set import ImageSet

log = logging.getLogger(__name__)

Array = NDArray[Any]
FEATURES = (16, 32, 64, 128, 128, 16)
BATCH, RATE = 16, 1e-3
SMALLEST = 16  # pixels: the network halves four times
# Augmentation, the same for every set: turns (rad), scales, shifts (of the size), contrast.
TURN, SCALE, SHIFT, CONTRAST = 0.25, 0.15, 0.05, 0.3


def segmentation_dice(
    train_sets: Mapping[str, ImageSet | tuple[ImageSet, ...]],
    test: ImageSet,
    *,
    label_count: int,
    steps: int = 1000,
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    label_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Dice on real test patients for a U-Net trained on each set, with paired tests.

    Args:
        train_sets: Name and annotated images; of several together, each gives an equal part of
            every batch, so that many synthetic images do not drown a few real ones.
        test: Real annotated images of other patients (``groups``).
        label_count: Number of labels with the background.
        steps: Training steps, the same for every set.
        seeds: One network each.
        device: Where to compute.
        label_names: Of the labels, the background's first.

    Returns:
        ``patients``; ``dice``: for each set ``mean``, its 95 % bootstrap ``interval`` over
        patients, ``per_patient``, ``per_label``, ``per_seed``, ``n``; ``tests``: for each pair of
        sets the mean difference (first minus second), its interval and the Wilcoxon signed-rank
        ``p_value``; and the budget (``steps``, ``seeds``, ``parameters``).

    Raises:
        InputError: Labels are missing or above ``label_count``, or fewer than two patients.
        LeakageError: A test patient is in a training set.
    """
    sets = {name: s if isinstance(s, tuple) else (s,) for name, s in train_sets.items()}
    _check(sets, test, label_count)
    assert test.labels is not None
    owners = np.asarray(test.groups)
    patients = sorted(set(owners.tolist()))
    scores: dict[str, Array] = {}
    size = 0
    for name, parts in sets.items():
        rows = []
        for seed in seeds:
            network = _trained(parts, label_count, steps, seed, device)
            size = sum(weight.numel() for weight in network.parameters())
            found = _segmented(network, test.images, device)
            rows.append(
                [
                    _patient_dice(found, test.labels[:, 0], owners == p, label_count)
                    for p in patients
                ]
            )
            log.info("U-Net on %s, seed %d: mean Dice %.3f", name, seed, np.mean(rows[-1]))
        scores[name] = np.asarray(rows)  # (seeds, patients, labels)
    names = list(label_names)[1:] or [f"label {number}" for number in range(1, label_count)]
    return {
        "patients": patients,
        "steps": steps,
        "seeds": list(seeds),
        "parameters": size,
        "dice": {
            name: _summary(values, patients, names, sum(len(part) for part in sets[name]))
            for name, values in scores.items()
        },
        "tests": [_paired(a, b, scores) for a, b in combinations(scores, 2)],
    }


def _check(sets: Mapping[str, tuple[ImageSet, ...]], test: ImageSet, label_count: int) -> None:
    everything = [("test", test)] + [(name, part) for name, parts in sets.items() for part in parts]
    for name, part in everything:
        if part.labels is None or not len(part):
            raise InputError(f"the {name} set has no images with label maps")
        low, high = int(part.labels.min()), int(part.labels.max())
        if low < 0 or high >= label_count:
            msg = f"labels of the {name} set must be 0 to {label_count - 1}, got {low} to {high}"
            raise InputError(msg)
        if part.images.shape[1:] != test.images.shape[1:]:
            msg = f"{name} images are {part.images.shape[1:]}, test images {test.images.shape[1:]}"
            raise InputError(msg)
    if min(test.images.shape[2:]) < SMALLEST:
        msg = f"the U-Net needs at least {SMALLEST} pixels a side, got {test.images.shape[2:]}"
        raise InputError(msg)
    if test.groups is None or len(set(test.groups)) < 2:
        raise InputError("paired tests need the patients (groups) of at least two test images")
    for name, part in everything[1:]:
        shared = sorted(set(part.groups or ()) & set(test.groups))
        if shared:
            msg = f"{len(shared)} test patients are in the set {name!r}, among them {shared[0]!r}"
            raise LeakageError(msg)


def _network(channels: int, dims: int, label_count: int) -> nn.Module:
    from monai.networks.nets import BasicUNet

    network: nn.Module = BasicUNet(
        spatial_dims=dims,
        in_channels=channels,
        out_channels=label_count,
        features=FEATURES,
        norm=("group", {"num_groups": 8}),
    )
    return network


def _trained(
    parts: tuple[ImageSet, ...], label_count: int, steps: int, seed: int, device: str
) -> nn.Module:
    """A U-Net after ``steps`` batches; each part gives an equal share of every batch."""
    from monai.losses import DiceCELoss

    data = [
        (torch.from_numpy(p.images).to(device), torch.from_numpy(p.labels).to(device))
        for p in parts
        if p.labels is not None
    ]
    share = -(-BATCH // len(data))
    with torch.random.fork_rng(devices=[torch.device(device)] if "cuda" in device else []):
        torch.manual_seed(seed)
        images = data[0][0]
        network = _network(images.shape[1], images.ndim - 2, label_count).to(device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3 * RATE, total_steps=steps)
        criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)
        for _ in range(steps):
            drawn = [torch.randint(len(x), (share,), device=device) for x, _ in data]
            image = torch.cat([x[i] for (x, _), i in zip(data, drawn, strict=True)])
            labels = torch.cat([y[i] for (_, y), i in zip(data, drawn, strict=True)])
            loss = criterion(*_augmented(network, image, labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _augmented(network: nn.Module, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What the network says of turned, scaled, shifted images of other contrast, and the truth."""
    image, labels = moved(image, labels)
    shape = (len(image), *[1] * (image.ndim - 1))
    contrast = 1 + CONTRAST * _signed(image, *shape)
    brightness = CONTRAST / 2 * _signed(image, *shape)
    return network(image * contrast + brightness), labels


def moved(image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Images and label maps turned, scaled and shifted together, one way each."""
    count, dims = len(image), image.ndim - 2
    angles = TURN * _signed(image, count, dims, dims)
    turn = torch.linalg.matrix_exp((angles - angles.transpose(1, 2)) / 2)
    scale = torch.exp(SCALE * _signed(image, count, 1, 1))
    shift = 2 * SHIFT * _signed(image, count, dims, 1)
    # affine_grid counts in half sizes, so a turn has to be squeezed to the image's proportions.
    half = torch.tensor(image.shape[2:][::-1], dtype=image.dtype, device=image.device)
    matrix = turn * scale * half / half[:, None]
    grid = F.affine_grid(torch.cat([matrix, shift], 2), list(image.shape), align_corners=False)
    settings: dict[str, Any] = {"padding_mode": "border", "align_corners": False}
    where = F.grid_sample(labels.to(image.dtype), grid, mode="nearest", **settings)
    return F.grid_sample(image, grid, **settings), where.round()


def _signed(like: Tensor, *shape: int) -> Tensor:
    """Uniform in -1..1, on the device of ``like``."""
    return 2 * torch.rand(shape, device=like.device) - 1


def _segmented(network: nn.Module, images: Array, device: str) -> Array:
    """Label maps ``(N, *spatial)``."""
    with torch.inference_mode():
        parts = [
            network(part.to(device)).argmax(1).cpu()
            for part in torch.from_numpy(images).split(BATCH)
        ]
    return torch.cat(parts).numpy()


def _patient_dice(found: Array, truth: Array, mine: Array, label_count: int) -> list[float]:
    """Dice of each label over all images of one patient."""
    return [dice(found[mine] == n, truth[mine] == n) for n in range(1, label_count)]


def _summary(
    values: Array, patients: Sequence[str], names: Sequence[str], count: int
) -> dict[str, Any]:
    """Of Dice ``(seeds, patients, labels)``."""
    by_patient = values.mean((0, 2))
    found = bootstrap_interval(by_patient)
    return {
        "mean": found.estimate,
        "interval": [found.low, found.high],
        "per_patient": dict(zip(patients, by_patient.tolist(), strict=True)),
        "per_label": dict(zip(names, values.mean((0, 1)).tolist(), strict=True)),
        "per_seed": values.mean((1, 2)).tolist(),
        "n": count,
    }


def _paired(first: str, second: str, scores: Mapping[str, Array]) -> dict[str, Any]:
    """The difference of two sets, patient by patient."""
    from scipy.stats import wilcoxon

    difference = (scores[first] - scores[second]).mean((0, 2))
    found = bootstrap_interval(difference)
    same = not np.any(difference)
    return {
        "first": first,
        "second": second,
        "difference": found.estimate,
        "interval": [found.low, found.high],
        "p_value": 1.0 if same else float(wilcoxon(difference).pvalue),
        "patients": len(difference),
        # What the test could reach at all: with four patients never below 0.125.
        "smallest_p_value": 2.0 ** (1 - len(difference)),
    }
