"""Structural similarity of pairs of images at several scales, 2-D and 3-D."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.losses import ssim_maps
from medgen.metrics.paired import WEIGHTS, scales


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
        similarity, contrast = ssim_maps(a, b, data_range=data_range)
        term = (similarity if scale == count - 1 else contrast).flatten(1).mean(1)
        value = value * term.clamp(min=0) ** weight
        if scale < count - 1:
            a, b = pool(a, 2), pool(b, 2)
    return value
