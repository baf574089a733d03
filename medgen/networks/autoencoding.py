"""Encoder, decoder and latent space that the autoencoders share.

The unified architecture of Baur et al., "Autoencoders for Unsupervised Anomaly Segmentation in
Brain MR Images" (Med Image Anal 69:101952, 2021): strided convolutions, and between encoder and
decoder either one latent vector (dense) or one for every place of a coarse grid (spatial).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.networks.sizes import require_multiples

# Channels between the last convolution and a dense latent vector (Baur et al. use 16).
NECK = 16
# exp() of these is still finite and positive in float32.
LOGVAR_LIMITS = (-30.0, 20.0)


def dense_size(image_size: Sequence[int] | None, spatial_dims: int, factor: int) -> tuple[int, ...]:
    """The image size of a dense latent space, checked.

    Args:
        image_size: Largest image, as a method's configuration gives it.
        spatial_dims: 2 or 3.
        factor: By how much the encoder divides the size.

    Raises:
        InputError: There is none, or it does not fit.
    """
    if image_size is None or len(image_size) != spatial_dims:
        msg = f"a dense latent space needs image_size with {spatial_dims} numbers, got {image_size}"
        raise InputError(msg, "Or choose latent: spatial, which takes images of any size.")
    require_multiples(image_size, factor)
    return tuple(image_size)


def fit_to(
    image: Tensor, image_size: Sequence[int] | None, factor: int
) -> tuple[Tensor, tuple[slice, ...]]:
    """An image at a size that a network can take, and the index of the given one in it.

    Args:
        image: ``(B, C, *spatial)``.
        image_size: The one size of a dense network, up to which images are padded with 0 on both
            sides; None for a network that takes all multiples of ``factor``.
        factor: By how much the encoder divides the size.

    Raises:
        InputError: The image is too large, or its size is no multiple of ``factor``.
    """
    sizes = tuple(image.shape[2:])
    if image_size is None:
        require_multiples(sizes, factor)
        return image, (slice(None),) * image.ndim
    if any(size > largest for size, largest in zip(sizes, image_size, strict=True)):
        msg = f"this network takes images up to {tuple(image_size)} voxels, got {sizes}"
        raise InputError(msg, "Crop the image to the brain, or train with a larger image_size.")
    before = [(largest - size) // 2 for size, largest in zip(sizes, image_size, strict=True)]
    padding: list[int] = []
    for first, size, largest in zip(before, sizes, image_size, strict=True):
        padding = [first, largest - size - first, *padding]  # torch counts from the last axis
    inside = tuple(slice(b, b + size) for b, size in zip(before, sizes, strict=True))
    return F.pad(image, padding), (slice(None), slice(None), *inside)


def encoder(spatial_dims: int, channels: int, features: Sequence[int]) -> nn.Module:
    """Image to features; halves the size once for every entry of ``features``."""
    widths = (channels, *features)
    return nn.Sequential(*[_block(spatial_dims, a, b, strides=2) for a, b in pairwise(widths)])


def decoder(spatial_dims: int, features: Sequence[int], channels: int) -> nn.Module:
    """Doubles the size as often; enlarging before convolving leaves no checkerboard."""
    widths = tuple(reversed(features))
    widths = (*widths, widths[-1])
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Upsample(scale_factor=2), _block(spatial_dims, a, b)]
    last = Convolution(spatial_dims, widths[-1], channels, kernel_size=3, conv_only=True)
    return nn.Sequential(*layers, last)


def bottleneck(
    spatial_dims: int,
    width: int,
    latent_in: int,
    latent_out: int,
    image_size: Sequence[int] | None,
    factor: int,
) -> tuple[nn.Module, nn.Module]:
    """From the encoder's features to latent numbers, and from a latent to features.

    Args:
        spatial_dims: 2 or 3.
        width: Channels of the features, the encoder's last.
        latent_in: Numbers of one latent vector, which the decoder takes in.
        latent_out: Numbers that the encoder gives out: twice as many for mean and logvar.
        image_size: Of a dense latent space; None for a spatial one.
        factor: By how much the encoder divides the size.

    Returns:
        Features ``(B, width, *spatial / factor)`` to ``(B, latent_out[, *spatial / factor])``, and
        ``(B, latent_in[, *spatial / factor])`` to features.
    """

    def pointwise(inputs: int, outputs: int) -> nn.Module:
        conv: nn.Module = Convolution(spatial_dims, inputs, outputs, kernel_size=1, conv_only=True)
        return conv

    if image_size is None:
        return pointwise(width, latent_out), pointwise(latent_in, width)
    small = [size // factor for size in image_size]
    numbers = NECK * prod(small)
    down = nn.Sequential(pointwise(width, NECK), nn.Flatten(), nn.Linear(numbers, latent_out))
    up = nn.Sequential(
        nn.Linear(latent_in, numbers), nn.Unflatten(1, (NECK, *small)), pointwise(NECK, width)
    )
    return down, up


def _block(spatial_dims: int, inputs: int, outputs: int, **settings: Any) -> nn.Module:
    block: nn.Module = Convolution(
        spatial_dims, inputs, outputs, kernel_size=3, norm="batch", act="leakyrelu", **settings
    )
    return block
