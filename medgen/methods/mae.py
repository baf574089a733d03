"""MAE: an encoder that must guess hidden patches learns what belongs beside what.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022), with convolutions as in
Tian et al., "Designing BERT for Convolutional Networks: Sparse and Hierarchical Masked Modeling"
(SparK, ICLR 2023). An image is cut into patches, most of which are hidden; the encoder sees the
others, and a light decoder, which finds its features at all resolutions, draws the image:

``loss = mean over hidden voxels of (x' - x)^2``

A convolution would carry features across the border into hidden patches, and after a few layers the
pattern of the mask would be gone. So every layer's output is set to 0 where the image is hidden
(SparK's sparse convolution, computed densely), and what is hidden counts in no normalisation. The
decoder finds one learned vector at all hidden places.

``represent(image)`` is what remains after pre-training: the encoder's features of the whole image,
averaged over places, in arbitrary units. ``restored`` has the image's unit: patches are dealt to
``parts`` fixed sets, each set is shown alone, and a voxel is the mean of the guesses made while it
was hidden, as in Zavrtanik et al., "Reconstruction by inpainting for visual anomaly detection"
(Pattern Recognition 112:107706, 2021); a lesion cannot be copied, as nothing ever sees the voxel
that it draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from medgen.config import Config
from medgen.errors import InputError
from medgen.losses import mean_inside
from medgen.networks.layers import conv
from medgen.networks.sizes import require_multiples

SEED = 0  # of the fixed sets of patches that prediction shows


class MAEConfig(Config):
    """Settings of the masked autoencoder."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    features: tuple[int, ...] = Field(
        (32, 64, 128, 256),
        min_length=1,
        description="channels after each halving of the size; a patch is 2 to the power of their "
        "number wide",
    )
    parts: int = Field(
        3, ge=2, description="one patch in so many is shown; 3 hides two thirds of the image"
    )
    learning_rate: float = Field(1e-3, gt=0, description="AdamW learning rate")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay")


class MAE(nn.Module):
    """Draws an image of which most patches are hidden."""

    Config = MAEConfig
    input_slices = 1

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims, self.channels = config.spatial_dims, config.channels
        self.divisor = 2 ** len(config.features)
        widths = (config.channels, *config.features)
        dims, last = config.spatial_dims, config.features[-1]
        self.encoder = nn.ModuleList(_Stage(dims, a, b, 2) for a, b in pairwise(widths))
        self.hidden = nn.Parameter(torch.zeros(last))
        nn.init.normal_(self.hidden, std=0.02)
        # The coarse grid is where the decoder looks far; finer layers draw.
        self.middle = nn.ModuleList(_Stage(dims, last, last) for _ in range(2))
        finer = config.features[-2::-1]
        self.lateral = nn.ModuleList(conv(dims, width, width, 1) for width in finer)
        down = (last, *finer, config.features[0])
        self.finer = nn.ModuleList(_Stage(dims, a, b) for a, b in pairwise(down))
        self.draw = conv(dims, config.features[0], config.channels)

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for encoder and decoder."""
        rate, decay = self.config.learning_rate, self.config.weight_decay
        return {"autoencoder": AdamW(self.parameters(), rate, (0.9, 0.95), weight_decay=decay)}

    def encode(self, image: Tensor, shown: Tensor | None = None) -> list[Tensor]:
        """Features after each halving, the last ``(B, features[-1], *spatial / divisor)``.

        Args:
            image: ``(B, C, *spatial)``.
            shown: 1 where a patch is seen, ``(B or 1, 1, *spatial / divisor)``; all if left out.

        Raises:
            InputError: The size is not a multiple of ``divisor``.
        """
        require_multiples(image.shape[2:], self.divisor)
        if shown is None:
            shown = image.new_ones(1, 1, *(edge // self.divisor for edge in image.shape[2:]))
        image = image * _enlarged(shown, self.divisor)
        found: list[Tensor] = []
        for depth, stage in enumerate(self.encoder, start=1):
            image = stage(image, _enlarged(shown, self.divisor >> depth))
            found.append(image)
        return found

    def represent(self, image: Tensor) -> Tensor:
        """Feature vectors ``(B, features[-1])`` of images of which nothing is hidden."""
        return self.encode(image)[-1].flatten(2).mean(2)

    def forward(self, image: Tensor, shown: Tensor) -> Tensor:
        """The image ``(B, C, *spatial)`` as drawn from the patches that are shown."""
        *fine, coarse = self.encode(image, shown)
        places = (None, slice(None), *(None,) * self.spatial_dims)
        value: Tensor = coarse + self.hidden[places] * (1 - shown)
        for stage in self.middle:
            value = stage(value, _everywhere(value))
        for number, stage in enumerate(self.finer):
            value = F.interpolate(value, scale_factor=2.0)
            value = stage(value, _everywhere(value))
            if number < len(fine):
                value = value + self.lateral[number](fine[-1 - number])
        drawn: Tensor = self.draw(value)
        return drawn

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Mean squared error of the hidden voxels of healthy images, inside the mask."""
        image = batch["healthy"]
        grid = self._grid(image.shape[2:])
        cells = prod(grid)
        # Of every image the patches with the lowest of random numbers are shown.
        ranks = torch.rand(len(image), cells, device=image.device).argsort(1).argsort(1)
        shown = (ranks < max(1, cells // self.config.parts)).float().reshape(-1, 1, *grid)
        hidden = batch["mask"] * (1 - _enlarged(shown, self.divisor))
        yield "autoencoder", mean_inside((self(image, shown) - image).square(), hidden), {}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)``: each voxel from images in which it was hidden."""
        grid = self._grid(image.shape[2:])
        order = torch.randperm(prod(grid), generator=torch.Generator().manual_seed(SEED))
        sets = (order % self.config.parts).to(image.device).reshape(1, 1, *grid)
        total = torch.zeros_like(image)
        for number in range(self.config.parts):
            shown = (sets == number).to(image.dtype)
            total += self(image, shown) * _enlarged(1 - shown, self.divisor)
        # Every patch was shown once.
        return {"restored": total / (self.config.parts - 1)}

    def _grid(self, size: Sequence[int]) -> list[int]:
        """How many patches lie along each axis.

        Raises:
            InputError: Too few to hide any.
        """
        require_multiples(size, self.divisor)
        grid = [edge // self.divisor for edge in size]
        if prod(grid) < self.config.parts:
            msg = f"an image of {tuple(size)} voxels has {prod(grid)} patch(es) of {self.divisor}"
            raise InputError(
                f"{msg} a side; needed are {self.config.parts}, one of them to be shown",
                "Take larger images, or a network with fewer `features`.",
            )
        return grid


class _Stage(nn.Module):
    """A convolution to another width (and half the size), and one more beside a shortcut."""

    def __init__(self, dims: int, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = (
            conv(dims, inputs, outputs, 3, stride),
            conv(dims, outputs, outputs),
        )
        self.before, self.after = _Norm(outputs), _Norm(outputs)

    def forward(self, image: Tensor, shown: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to ``(B, outputs, *spatial / stride)``, 0 where hidden."""
        value = F.gelu(self.before(self.first(image), shown)) * shown
        return value + F.gelu(self.after(self.second(value), shown)) * shown


class _Norm(nn.Module):
    """Scales all channels of an image together to mean 0 and variance 1 over what is shown."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )

    def forward(self, value: Tensor, shown: Tensor) -> Tensor:
        """``(B, C, *spatial)`` and a mask ``(B or 1, 1, *spatial)`` to the same shape."""
        axes = tuple(range(1, value.ndim))
        count = shown.sum(axes, keepdim=True) * value.shape[1]
        centred = value - (value * shown).sum(axes, keepdim=True) / count
        variance = (centred.square() * shown).sum(axes, keepdim=True) / count
        places = (None, slice(None), *(None,) * (value.ndim - 2))
        scale = torch.rsqrt(variance + 1e-5) * self.weight[places]
        return centred * scale + self.bias[places]


def _everywhere(value: Tensor) -> Tensor:
    """The mask that hides nothing."""
    return value.new_ones(1, 1, *value.shape[2:])


def _enlarged(shown: Tensor, factor: int) -> Tensor:
    """A mask of patches as a mask of what is ``factor`` times finer."""
    for axis in range(2, shown.ndim):
        shown = shown.repeat_interleave(factor, axis)
    return shown
