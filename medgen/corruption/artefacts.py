"""What an MR scanner does to anatomy: limited resolution, shading by the coil, motion.

Images are ``(D, H, W)``; the damage is drawn from an explicit generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from medgen.corruption.lesions import chance, gaussian_blur, smooth_noise, uniform

# Voxels over which a bias field varies.
SHADING_GRAIN = 45


def bias_field(
    shape: tuple[int, ...], strength: float, generator: Generator, grain: float = SHADING_GRAIN
) -> Tensor:
    """A smooth positive factor, what the sensitivity of a receive coil does to an image.

    Args:
        shape: ``(D, H, W)``.
        strength: Standard deviation of the factor's logarithm.
        generator: Source of randomness.
        grain: Voxels between independent values.
    """
    return torch.exp(strength * smooth_noise(shape, grain, generator))


def acquired(
    image: Tensor,
    generator: Generator,
    thick: float,
    shading: float = 0.2,
    sharpness: tuple[float, float] = (0.4, 0.85),
) -> Tensor:
    """Bias field, limited resolution and contrast curve of a scan, without noise.

    Args:
        image: Painted intensities ``(D, H, W)``.
        generator: Source of randomness.
        thick: How often one axis is blurred as by thick slices.
        shading: Largest standard deviation of the logarithm of the bias field.
        sharpness: Range of the blur's standard deviation in voxels.
    """
    sharp = uniform(generator, *sharpness)
    sigmas = [sharp * uniform(generator, 0.7, 1.3) for _ in range(3)]
    if chance(generator, thick):
        sigmas[int(torch.randint(3, (), generator=generator))] += uniform(generator, 0.5, 1.5)
    blurred = gaussian_blur(image, sigmas)
    if shading:
        blurred = (
            bias_field(tuple(image.shape), uniform(generator, 0, shading), generator) * blurred
        )
    gamma = math.exp(0.15 * float(torch.randn((), generator=generator)))
    return blurred.clamp(min=1e-4) ** gamma


def motion(
    image: Tensor, moves: int, rotation: float, shift: float, generator: Generator
) -> Tensor:
    """The head moves a few times while k-space is filled line by line.

    Lines along the last axis (the phase-encoding direction) are acquired in order; after each
    move the rest of them is that of the moved image (Shaw et al., "MRI k-space motion artefact
    augmentation", MIDL 2019). The lines around the middle are those of the image where it began,
    so the result lies where the truth does.

    Args:
        image: ``(D, H, W)``; each D is a slice, and all slices move together.
        moves: How often the head moves.
        rotation: Standard deviation of the angle in the plane, in degrees.
        shift: Standard deviation of each shift in the plane, in voxels.
        generator: Source of randomness.

    Returns:
        The magnitude ``(D, H, W)``.
    """
    lines = image.shape[-1]
    spectrum = torch.fft.fft(image, dim=-1)
    # Row numbers in order of acquisition: from the most negative frequency to the largest.
    order = torch.fft.ifftshift(torch.arange(lines))
    times = sorted(uniform(generator, 0, 1) for _ in range(moves))
    for number, time in enumerate(times):
        until = times[number + 1] if number + 1 < moves else 1.0
        angle = math.radians(rotation) * float(torch.randn((), generator=generator))
        offset = shift * torch.randn(2, generator=generator)
        moved = torch.fft.fft(_moved(image, angle, offset.tolist()), dim=-1)
        affected = (order >= time * lines) & (order < until * lines)
        affected &= (order - lines // 2).abs() > lines // 16
        spectrum = torch.where(affected, moved, spectrum)
    return torch.fft.ifft(spectrum, dim=-1).abs()


def _moved(image: Tensor, angle: float, offset: Sequence[float]) -> Tensor:
    """Every slice turned by ``angle`` radians and shifted by ``offset`` voxels (H, W)."""
    height, width = image.shape[1:]
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor(
        [
            [cos, -sin * height / width, 2 * offset[1] / width],
            [sin * width / height, cos, 2 * offset[0] / height],
        ]
    )
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)
    grid = grid.expand(len(image), -1, -1, -1)
    return F.grid_sample(image[:, None], grid, align_corners=False)[:, 0]
