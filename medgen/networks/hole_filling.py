"""Filling of holes without any weights: where the inpainting networks start from."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medgen.networks.layers import AVERAGE_POOL

MODE = {2: "bilinear", 3: "trilinear"}


@torch.no_grad()
def pull_push(image: Tensor, hole: Tensor, levels: int) -> Tensor:
    """The image with a smooth continuation of its surroundings in the hole.

    Gortler et al., "The Lumigraph" (1996), section 4.3.3: means of what is known are pulled up a
    pyramid, and what is not known is pushed down from the next coarser level.

    Args:
        image: ``(B, C, *spatial)``; what stands in the hole does not matter, if it is finite.
        hole: ``(B, 1, *spatial)``, 1 inside.
        levels: Halvings of the size, which must allow them; above stands one mean of all. An
            image that is all hole becomes 0.

    Returns:
        A new tensor, equal to the image outside the hole.
    """
    return torch.lerp(image, _filled(image, 1 - hole, levels), hole)


def _filled(image: Tensor, weight: Tensor, levels: int) -> Tensor:
    """``weight`` 0..1 says how much of a voxel is known."""
    if levels == 0:
        axes = tuple(range(2, image.ndim))
        known = weight.sum(axes, keepdim=True).clamp(min=1e-6)
        coarse = (image * weight).sum(axes, keepdim=True) / known
        return torch.lerp(coarse.expand_as(image), image, weight)
    dims = image.ndim - 2
    pool = AVERAGE_POOL[dims](2)
    share = pool(weight)
    coarse = pool(image * weight) / share.clamp(min=1e-6)
    # One known voxel of a block settles it.
    above = _filled(coarse, (share * 2**dims).clamp(max=1), levels - 1)
    fine = F.interpolate(above, scale_factor=2, mode=MODE[dims], align_corners=False)
    return torch.lerp(fine, image, weight)
