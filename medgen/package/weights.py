"""How a package stores weights: in few bits, rounded before anything is measured with them."""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Half precision has 11 significant bits. The last three cost a quarter of the file and change the
# images of our generators by less than a fifth of a step of 8-bit grey, on average.
SIGNIFICANT_BITS = 8
_DROPPED = 11 - SIGNIFICANT_BITS
# Literal bits that know whether a byte is the first or the second of its half-precision number:
# any reader of .xz can read it, and it is smaller by a twentieth.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "lp": 1, "pb": 1}]


def rounded(value: Tensor) -> Tensor:
    """A tensor as a package stores it: float16 with few significant bits; others as they are.

    Vectors (biases, scales and shifts of normalisation) keep all bits of float16: they are few.
    """
    import torch

    if not value.is_floating_point():
        return value
    half = value.half()
    if half.ndim < 2:
        return half
    bits = half.view(torch.int16).int()
    # To nearest; the sign is a bit of its own, so magnitudes are rounded alike.
    magnitude = (bits & 0x7FFF) + (1 << (_DROPPED - 1)) >> _DROPPED << _DROPPED
    magnitude = magnitude.clamp(max=0x7BFF >> _DROPPED << _DROPPED)  # never up to infinity
    signed = torch.where(bits < 0, magnitude - 0x8000, magnitude)
    return signed.to(torch.int16).view(torch.float16)


def compressed(weights: Mapping[str, Tensor]) -> bytes:
    """Weights as safetensors, packed by xz."""
    from safetensors.torch import save

    return lzma.compress(save(dict(weights)), format=lzma.FORMAT_XZ, filters=_FILTERS)
