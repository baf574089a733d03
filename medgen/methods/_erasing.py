"""Boxes erased from an image, so that an autoencoder must know what was there."""

from __future__ import annotations

import torch
from torch import Tensor

# Zimmerer et al. (2018), in the authors' code: up to so many boxes, ...
MOST = 3
# ... whose edges are at most this part of the image's longest.
LARGEST = 0.5


def erase_boxes(image: Tensor) -> Tensor:
    """Copies of images in which one to three boxes hold one value each.

    Number, places, sizes and values (between the image's smallest and largest) are drawn at once
    from torch's global generator, anew for every image.

    Args:
        image: ``(B, C, *spatial)``; not changed.
    """
    erased = image.clone()
    longest = max(1, int(LARGEST * max(image.shape[2:])))
    for one in erased:
        low, high = one.amin(), one.amax()
        for _ in range(1 + int(torch.randint(MOST, ()))):
            box = [_side(size, min(longest, size)) for size in one.shape[1:]]
            share = torch.rand((), device=image.device)
            one[(slice(None), *box)] = torch.lerp(low, high, share.to(low.dtype))
    return erased


def _side(size: int, longest: int) -> slice:
    """Where a box lies along an axis."""
    length = 1 + int(torch.randint(longest, ()))
    first = int(torch.randint(size - length + 1, ()))
    return slice(first, first + length)
