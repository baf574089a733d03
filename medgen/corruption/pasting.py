"""Anomalies put into real healthy images: patches of other images, of the same one, and blobs.

``foreign_patch`` is the foreign patch interpolation of Tan et al., "Detecting Outliers with Foreign
Patch Interpolation" (MELBA 2022): a box of the image is mixed with the same box of another image,
``(1 - f) x + f y``, and ``f`` is what a network is to find. ``cut_paste`` is CutPaste of Li et al.,
"CutPaste: Self-Supervised Learning for Anomaly Detection and Localization" (CVPR 2021): a patch,
or a thin tilted scar, is moved within the image. ``noisy_blobs`` are irregular blobs of another
brightness and texture.

Images are ``(C, *spatial)``, 2-D or 3-D, about 0..1, on any device. Everything random is drawn on
the CPU from an explicit ``torch.Generator``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from medgen.corruption.lesions import appearance, blob, chance, random_rotation, uniform

# Part of each edge, at both of its ends, where no anomaly is centred (Tan et al.).
RIM = 0.1
# Edges of a foreign patch, as parts of the image's, and how much of it shows (Tan et al.).
PATCH_EDGES, FACTORS = (0.1, 0.4), (0.05, 0.95)
# Part of the image's area that a moved patch covers, and the proportions of its edges (Li et al.).
CUT_AREA, CUT_PROPORTIONS = (0.02, 0.15), (0.3, 3.3)
# Length and width of a scar as parts of the edge; of 256 pixels Li et al. take 10-25 and 2-16.
SCAR_LENGTH, SCAR_WIDTH = (0.04, 0.1), (0.008, 0.06)
CUT_JITTER = 0.1  # of brightness and contrast (Li et al.)
# Radius of a blob as part of the mean edge, and its difference from the tissue, in image units.
BLOB_RADIUS, BLOB_DIFFERENCE = (0.03, 0.15), (0.15, 0.6)
# An anomaly counts where the image changed by this much nearby, as in medgen.anatomy.
LEAST_VISIBLE, NEARBY = 0.04, 5


class Pasted(NamedTuple):
    """An image ``(C, *spatial)`` with an anomaly, and how much of it each voxel has.

    ``factor`` ``(1, *spatial)`` is 0 outside, up to 1 inside.
    """

    image: Tensor
    factor: Tensor


def foreign_patch(image: Tensor, other: Tensor, generator: Generator) -> Pasted:
    """Foreign patch interpolation.

    Args:
        image: ``(C, *spatial)``.
        other: Another image of the same shape.
        generator: Source of randomness.
    """
    shape = image.shape[1:]
    half = [uniform(generator, *PATCH_EDGES) * size / 2 for size in shape]
    box = _box(shape, _centre(shape, generator), half, None)
    factor = uniform(generator, *FACTORS) * box.to(image.device)
    return Pasted(torch.lerp(image, other, factor), factor)


def cut_paste(image: Tensor, generator: Generator) -> Pasted:
    """A patch or a scar of the image at another place of it, a little brighter or darker.

    Args:
        image: ``(C, *spatial)``.
        generator: Source of randomness.
    """
    shape = image.shape[1:]
    target, source = _centre(shape, generator), _centre(shape, generator)
    if chance(generator, 0.5):
        half, turn = _patch(shape, generator), None
    else:
        edge = math.prod(shape) ** (1 / len(shape))
        half = [uniform(generator, *SCAR_WIDTH) * edge / 2 for _ in shape]
        half[0] = uniform(generator, *SCAR_LENGTH) * edge / 2
        turn = _turn(len(shape), generator)
    factor = _box(shape, target, half, turn).to(image.device).float()
    moved = image
    for axis, (a, b, size) in enumerate(zip(target, source, shape, strict=True), start=1):
        index = (torch.arange(size) - a + b).clamp(0, size - 1)
        moved = moved.index_select(axis, index.to(image.device))
    contrast = 1 + uniform(generator, -CUT_JITTER, CUT_JITTER)
    moved = moved * contrast + uniform(generator, -CUT_JITTER, CUT_JITTER)
    return Pasted(torch.where(factor > 0, moved, image), factor)


def noisy_blobs(image: Tensor, generator: Generator) -> Pasted:
    """One to three irregular blobs, brighter or darker than what they cover, with a texture.

    Args:
        image: ``(C, *spatial)``.
        generator: Source of randomness.
    """
    shape = tuple(image.shape[1:])
    # A picture is a volume of one slice.
    full = (1, *shape) if len(shape) == 2 else shape
    values, factor = image.cpu().reshape(-1, *full).clone(), torch.zeros(full)
    low, high = (math.log(part * math.prod(shape) ** (1 / len(shape))) for part in BLOB_RADIUS)
    for _ in range(1 + int(uniform(generator, 0, 3))):
        first, middle, last = (*[0] * (len(full) - len(shape)), *_centre(shape, generator))
        radius = max(1.0, math.exp(uniform(generator, low, high)))
        alpha, box = blob((first, middle, last), radius, full, generator)
        for channel in values:
            difference = uniform(generator, *BLOB_DIFFERENCE)
            difference *= 1 if chance(generator, 0.5) else -1
            channel[box], _ = appearance(channel[box], alpha, difference, generator)
        factor[box] = torch.maximum(factor[box], alpha)
    pasted = values.clamp(min=0).reshape(image.shape)
    return Pasted(pasted.to(image.device), factor.reshape(1, *shape).to(image.device))


def visible_part(healthy: Tensor, pasted: Pasted) -> Tensor:
    """Where an anomaly can be seen, 0 or 1 ``(1, *spatial)``.

    That is where it has at least half of its largest factor, and changed the image nearby: part of
    a patch may look exactly like what it covers.
    """
    changed = (pasted.image - healthy).abs().amax(0, keepdim=True)
    pool: Callable[..., Tensor] = F.max_pool2d if healthy.ndim == 3 else F.max_pool3d
    near = pool(changed[None], NEARBY, stride=1, padding=NEARBY // 2)[0] >= LEAST_VISIBLE
    core = (pasted.factor > 0) & (pasted.factor >= pasted.factor.max() / 2)
    return (core & near).float()


def _centre(shape: Sequence[int], generator: Generator) -> list[int]:
    """A voxel away from the image's rim."""
    return [int(uniform(generator, RIM, 1 - RIM) * size) for size in shape]


def _patch(shape: Sequence[int], generator: Generator) -> list[float]:
    """Half the edges of a patch of random area and proportions; in 3-D of random volume."""
    area = uniform(generator, *CUT_AREA)
    low, high = (math.log(proportion) / 2 for proportion in CUT_PROPORTIONS)
    stretch = torch.tensor([math.exp(uniform(generator, low, high)) for _ in shape])
    stretch = stretch / stretch.prod() ** (1 / len(shape))
    edges = [min(0.9, area ** (1 / len(shape)) * float(factor)) for factor in stretch]
    return [edge * size / 2 for edge, size in zip(edges, shape, strict=True)]


def _turn(dims: int, generator: Generator) -> Tensor:
    """A rotation: up to 45 degrees either way in 2-D (Li et al.), any in 3-D."""
    if dims == 3:
        return random_rotation(generator)
    angle = uniform(generator, -math.pi / 4, math.pi / 4)
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[cos, -sin], [sin, cos]])


def _box(
    shape: Sequence[int], centre: Sequence[int], half: Sequence[float], turn: Tensor | None
) -> Tensor:
    """True in a box, at least a voxel wide, that may be tilted: ``(1, *spatial)``."""
    axes = [torch.arange(size).float() - middle for size, middle in zip(shape, centre, strict=True)]
    offset = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    if turn is not None:
        offset = offset @ turn
    return (offset.abs() <= torch.tensor(half).clamp(min=0.5)).all(-1)[None]
