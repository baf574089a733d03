"""Known damage with known masks: simulated lesions placed in an image drawn from labels.

A lesion is an opacity field ``alpha`` (0 outside, 1 in the core) on a small box of the image.
Everything is drawn from an explicit ``torch.Generator``, so the same seed gives the same damage.
Sizes are in voxels of the image that is being damaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from medgen.errors import InputError

Box = tuple[slice, slice, slice]


class Lesion(NamedTuple):
    """An opacity field ``alpha`` (D, H, W) in 0..1 that belongs at ``box`` of the image."""

    alpha: Tensor
    box: Box


def uniform(generator: Generator, low: float, high: float) -> float:
    """One number drawn uniformly from ``[low, high)``."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def chance(generator: Generator, probability: float) -> bool:
    """True with the given probability."""
    return float(torch.rand((), generator=generator)) < probability


def smooth_noise(shape: tuple[int, ...], grain: float, generator: Generator) -> Tensor:
    """Unit-variance noise that varies over about ``grain`` voxels.

    Args:
        shape: Shape ``(D, H, W)`` of the result.
        grain: Distance in voxels between independent values.
        generator: Source of randomness.
    """
    coarse = [max(2, math.ceil(size / grain) + 1) for size in shape]
    noise = torch.randn((1, 1, *coarse), generator=generator)
    field = F.interpolate(noise, size=shape, mode="trilinear", align_corners=True)[0, 0]
    # Interpolation averages neighbours and so lowers the variance; scale it back to about one.
    # A sparse sample of the field is enough to know by how much.
    sample = field.flatten()[:: max(1, field.numel() // 4096)]
    return field / sample.std(correction=0).clamp_min(1e-3)


def gaussian_blur(image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Blur (D, H, W) with one standard deviation (voxels) per axis; borders are replicated."""
    out = image[None, None]
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.2:
            continue
        reach = math.ceil(2.5 * sigma)
        taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
        shape, pad = [1, 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = 2 * reach + 1
        pad[4 - 2 * axis] = pad[5 - 2 * axis] = reach
        out = F.conv3d(F.pad(out, pad, mode="replicate"), (taps / taps.sum()).view(shape))
    return out[0, 0]


def random_rotation(generator: Generator) -> Tensor:
    """A rotation matrix (3, 3) drawn uniformly."""
    q, r = torch.linalg.qr(torch.randn((3, 3), generator=generator))
    q = q * torch.sign(torch.diagonal(r))
    return q * torch.sign(torch.linalg.det(q))


def _box_around(
    centre: tuple[int, int, int], radius: float, shape: tuple[int, ...]
) -> tuple[Box, Tensor]:
    """A cube clipped to the image, and its voxels' offsets (D, H, W, 3) from the centre."""
    reach = math.ceil(radius)
    box = tuple(
        slice(max(0, c - reach), min(size, c + reach + 1))
        for c, size in zip(centre, shape, strict=True)
    )
    axes = [
        torch.arange(part.start, part.stop, dtype=torch.float32) - c
        for part, c in zip(box, centre, strict=True)
    ]
    return box, torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # type: ignore[return-value]


def blob(
    centre: tuple[int, int, int],
    radius: float,
    shape: tuple[int, ...],
    generator: Generator,
) -> Lesion:
    """An irregular ellipsoid with a soft edge.

    Args:
        centre: Voxel of the middle, in order (D, H, W).
        radius: Mean radius in voxels.
        shape: Image shape ``(D, H, W)``; parts outside are cut off.
        generator: Source of randomness.
    """
    stretch = torch.exp(0.3 * torch.randn(3, generator=generator))
    stretch = stretch / stretch.prod() ** (1 / 3)
    box, offset = _box_around(centre, 1.8 * radius + 2, shape)
    distance = ((offset @ random_rotation(generator)) / (radius * stretch)).norm(dim=-1)
    ragged = uniform(generator, 0.05, 0.35)
    grain = uniform(generator, 0.4, 1.2) * radius + 1
    distance = distance + ragged * smooth_noise(tuple(distance.shape), grain, generator)
    softness = uniform(generator, 0.15, 0.6) / max(radius, 1.5)
    return Lesion(torch.sigmoid((1 - distance) / softness), box)


class LesionShapes:
    """Real lesion masks, cut out of their space, to be placed anywhere at any angle.

    Args:
        path: ``.npz`` with ``packed`` (N, bytes; ``np.packbits`` of each mask), ``shape`` (3,) and
            ``affine`` (4, 4), as the stroke masks that medgen's default model is trained on.

    Raises:
        InputError: If the file is missing or is not such an archive.
    """

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as archive:
                shape = tuple(int(size) for size in archive["shape"])
                spacing = np.linalg.norm(archive["affine"][:3, :3], axis=0)
                packed = archive["packed"]
        except (OSError, KeyError, ValueError) as error:
            msg = f"no readable lesion shapes at {path} ({error})"
            hint = "Expected an .npz with the arrays packed, shape and affine."
            raise InputError(msg, hint) from error
        self.spacing_mm = float(spacing.mean())
        self.masks: list[Tensor] = []
        for row in packed:
            mask = np.unpackbits(row, count=math.prod(shape)).reshape(shape)
            where = np.argwhere(mask)
            if len(where) < 8:
                continue
            low, high = where.min(0), where.max(0) + 1
            cut = mask[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
            self.masks.append(torch.from_numpy(np.pad(cut, 1)))

    def place(
        self,
        centre: tuple[int, int, int],
        shape: tuple[int, ...],
        spacing_mm: float,
        generator: Generator,
        *,
        largest: float,
    ) -> Lesion:
        """One of the masks, turned, mirrored and scaled.

        Args:
            centre: Voxel (D, H, W) where the middle of the mask goes.
            shape: Image shape ``(D, H, W)``.
            spacing_mm: Voxel size of the image.
            generator: Source of randomness.
            largest: Largest extent in voxels; bigger masks are shrunk to it.
        """
        pick = int(torch.randint(len(self.masks), (), generator=generator))
        mask = self.masks[pick].float()
        scale = uniform(generator, 0.6, 1.2) * self.spacing_mm / spacing_mm
        scale *= min(1.0, largest / (max(mask.shape) * scale))
        box, offset = _box_around(centre, 0.6 * scale * max(mask.shape) + 2, shape)
        turn = random_rotation(generator)
        # grid_sample wants (x, y, z) = (last, ..., first) axis, in -1..1 over the mask.
        half = torch.tensor(mask.shape, dtype=torch.float32) / 2
        grid = ((offset @ turn) / scale / half).flip(-1)
        alpha = F.grid_sample(mask[None, None], grid[None], mode="bilinear", align_corners=False)
        return Lesion(alpha[0, 0], box)


def appearance(
    tissue: Tensor, alpha: Tensor, difference: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Blend a lesion into the image.

    Args:
        tissue: Healthy intensities (D, H, W) in the lesion's box.
        alpha: Opacity (D, H, W).
        difference: Intensity of the lesion minus that of the tissue under it, same unit as tissue.
        generator: Source of randomness.

    Returns:
        The damaged intensities and the opacity that was used (a rim or a core may be hollow).
    """
    strength = uniform(generator, 0.75, 1.0)
    if chance(generator, 0.25):  # a core unlike its rim: necrosis, cavity, enhancement
        core = torch.sigmoid((alpha - uniform(generator, 0.8, 0.97)) / 0.03)
        inner = uniform(generator, -1.2, 0.6) * difference
        target = difference * (1 - core) + inner * core
    else:
        target = torch.full_like(alpha, difference)
    grain = uniform(generator, 1.0, 4.0)
    texture = smooth_noise(tuple(alpha.shape), grain, generator)
    target = target * (1 + uniform(generator, 0.0, 0.35) * texture)
    # Some lesions hide the anatomy under them, others only tint it.
    flatten = uniform(generator, 0.0, 0.9)
    weight = alpha.clamp(min=1e-3)
    local_mean = (tissue * weight).sum() / weight.sum()
    filled = tissue * (1 - flatten) + local_mean * flatten + target
    opacity = alpha * strength
    return tissue * (1 - opacity) + filled * opacity, alpha


def paint_lesions(
    healthy: Tensor,
    lesions: Sequence[Lesion],
    tissue: Tensor | None,
    difference: float,
    generator: Generator,
) -> tuple[Tensor, Tensor]:
    """Blend several lesions of one kind into an image.

    Args:
        healthy: Intensities (D, H, W).
        lesions: Where they are.
        tissue: Mask (D, H, W) that lesions do not leave; None lets them spill.
        difference: Intensity of a lesion minus that of the tissue; each varies by a quarter.
        generator: Source of randomness.

    Returns:
        The damaged intensities, not negative, and the opacity of all lesions.
    """
    damaged, opacity = healthy.clone(), torch.zeros_like(healthy)
    for alpha, box in lesions:
        inside = alpha if tissue is None else alpha * tissue[box]
        own = difference * uniform(generator, 0.75, 1.25)
        damaged[box], inside = appearance(damaged[box], inside, own, generator)
        opacity[box] = torch.maximum(opacity[box], inside)
    return damaged.clamp(min=0), opacity


def random_voxel(
    candidates: Tensor, shape: tuple[int, ...], generator: Generator
) -> tuple[int, int, int]:
    """One of the voxels whose flat indices in an image (D, H, W) are given."""
    pick = int(candidates[torch.randint(len(candidates), (), generator=generator)])
    row, last = divmod(pick, shape[2])
    first, middle = divmod(row, shape[1])
    return first, middle, last
