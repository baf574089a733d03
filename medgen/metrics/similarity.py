"""Structural similarity of pairs of images at several scales, 2-D and 3-D."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.errors import InputError

# Wang, Simoncelli and Bovik 2003, from fine to coarse.
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def scales(size: tuple[int, ...]) -> int:
    """How often an image can be halved, at most five times in all, and still hold the window.

    Raises:
        InputError: Not even the image itself does.
    """
    count = 0
    while count < len(WEIGHTS) and min(size) >> count >= WINDOW:
        count += 1
    if not count:
        raise InputError(f"MS-SSIM needs images of at least {WINDOW} pixels a side, got {size}")
    return count


def ms_ssim(a: Tensor, b: Tensor, *, data_range: float = 2.0) -> Tensor:
    """Multi-scale structural similarity ``(B,)``, 0..1; 1 for equal images.

    Wang et al. 2003 with a Gaussian window of 11 pixels. Images too small for five scales use as
    many as fit (three at 64 pixels, four at 128) with the first weights scaled to sum to one: only
    values of equal image sizes can be compared. Negative contrast terms count as 0.

    Args:
        a: Images ``(B, C, *spatial)``.
        b: Their partners.
        data_range: Largest minus smallest possible value.
    """
    count = scales(tuple(a.shape[2:]))
    weights = torch.tensor(WEIGHTS[:count], device=a.device)
    weights = weights / weights.sum()
    pool = F.avg_pool2d if a.ndim == 4 else F.avg_pool3d
    value = torch.ones(len(a), device=a.device)
    a, b = a.float(), b.float()
    for scale, weight in enumerate(weights):
        similarity, contrast = _ssim(a, b, data_range)
        term = similarity if scale == count - 1 else contrast
        value = value * term.clamp(min=0) ** weight
        if scale < count - 1:
            a, b = pool(a, 2), pool(b, 2)
    return value


def _ssim(a: Tensor, b: Tensor, data_range: float) -> tuple[Tensor, Tensor]:
    """Mean SSIM and mean contrast-structure term of each pair."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return (luminance * contrast).flatten(1).mean(1), contrast.flatten(1).mean(1)


def _blur(image: Tensor) -> Tensor:
    """Gaussian window along every axis, only where it fits."""
    offsets = torch.arange(WINDOW, device=image.device, dtype=image.dtype) - WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    window = window / window.sum()
    dims, channels = image.ndim - 2, image.shape[1]
    convolve = F.conv2d if dims == 2 else F.conv3d
    for axis in range(dims):
        shape = [1, 1] + [WINDOW if axis == other else 1 for other in range(dims)]
        kernel = window.reshape(shape).expand(channels, *[-1] * (dims + 1))
        image = convolve(image, kernel, groups=channels)
    return image
