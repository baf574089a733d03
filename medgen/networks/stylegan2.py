"""The networks of StyleGAN2, in 2-D.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020) and "Training
Generative Adversarial Networks with Limited Data" (NeurIPS 2020).

Modulation scales a convolution's input and demodulation its output, which is the same as scaling
the kernel of every image (2020, section 2.2) without a kernel per image. All resampling is with the
filter [1, 3, 3, 1] (2020, appendix B): enlarging with it is bilinear interpolation, and before
halving it is folded into the kernel. The gain sqrt(2) of leaky ReLU stands in the weights' scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.networks.layers import (
    EqualConv,
    EqualLinear,
    MinibatchDeviation,
    PixelNorm,
    halvings,
    spectral,
)

SLOPE = 0.2
GAIN = math.sqrt(2)


def level_sizes(image_size: Sequence[int]) -> list[tuple[int, int]]:
    """Sizes from the coarsest grid to the image, each twice the one before."""
    count = halvings(image_size)
    height, width = image_size
    return [(height >> level, width >> level) for level in range(count, -1, -1)]


def level_widths(sizes: Sequence[Sequence[int]], base: int, largest: int) -> list[int]:
    """Channels at each size: ``base`` over the longer edge, at most ``largest``."""
    return [max(1, min(largest, base // max(size))) for size in sizes]


class Mapping(nn.Module):
    """From a latent and a condition to a vector of style; always in float32.

    Args:
        latent: Length of the latent; 0 if there is only a condition.
        conditions: Number of conditions; 0 for none.
        width: Length of the result and of all hidden layers.
        layers: Number of fully connected layers.
        rate: Factor on the learning rate.
    """

    def __init__(
        self, latent: int, conditions: int, width: int, layers: int, *, rate: float = 0.01
    ) -> None:
        super().__init__()
        embedded = (latent or width) if conditions else 0
        self.embedding = nn.Embedding(conditions, embedded) if conditions else None
        self.normalise = PixelNorm()
        self.layers = nn.ModuleList(
            EqualLinear(width if layer else latent + embedded, width, gain=GAIN, rate=rate)
            for layer in range(layers)
        )

    def forward(self, latent: Tensor | None, condition: Tensor | None) -> Tensor:
        """``(B, latent)`` and ``(B,)`` to ``(B, width)``."""
        given = [] if latent is None else [latent.float()]
        if self.embedding is not None:
            given.append(self.embedding(condition))
        with torch.autocast(given[0].device.type, enabled=False):
            vector = torch.cat([self.normalise(part) for part in given], 1)
            for layer in self.layers:
                vector = F.leaky_relu(layer(vector), SLOPE)
        return vector


class StyledConv(nn.Module):
    """Modulated convolution with demodulation, noise, bias and leaky ReLU.

    Whatever the style, the result has a mean square near 1 if the input's channels are
    uncorrelated with unit variance.
    """

    noise: Tensor

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int], *, enlarge: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(1, 1, *size))
        self.scale = 1 / math.sqrt(9 * inputs)
        self.enlarge = enlarge

    def forward(self, features: Tensor, style: Tensor, random_noise: bool) -> Tensor:
        """``(B, inputs, *spatial)`` and styles ``(B, inputs)`` to ``(B, outputs, *size)``."""
        style = style * self.scale
        power = F.linear(style.square(), self.weight.square().sum((2, 3)))
        demodulation = GAIN * torch.rsqrt(power + 1e-8)
        features = features * _places(style, features)
        if self.enlarge:
            features = F.interpolate(features, scale_factor=2, mode="bilinear")
        features = F.conv2d(features, self.weight, padding=1)
        noise = self.noise
        if random_noise:
            noise = torch.randn(len(features), *noise.shape[1:], device=noise.device)
        bias = self.bias.to(features.dtype)[:, None, None]
        features = torch.addcmul(bias, features, _places(demodulation, features))
        return F.leaky_relu(features + (noise * self.strength).to(features.dtype), SLOPE)


class ToImage(nn.Module):
    """Modulated 1x1 convolution to image channels, not demodulated; the result is float32."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` and styles ``(B, inputs)`` to ``(B, channels, *spatial)``."""
        scaled = features * _places(style * self.scale, features)
        return F.conv2d(scaled, self.weight, self.bias).float()


class Synthesis(nn.Module):
    """From styles to images: a learned constant, two convolutions a level, images added up.

    Style mixing gives the layers from a crossover on to another vector. One affine map makes the
    styles of all layers, since many small ones would cost more time than the convolutions.

    Args:
        channels: Of the image.
        image_size: Of the image.
        width: Length of a style vector w.
        base: See :func:`level_widths`.
        largest: See :func:`level_widths`.
    """

    place: Tensor

    def __init__(
        self, channels: int, image_size: Sequence[int], width: int, base: int, largest: int
    ) -> None:
        super().__init__()
        sizes = level_sizes(image_size)
        widths = level_widths(sizes, base, largest)
        self.constant = nn.Parameter(torch.randn(1, widths[0], *sizes[0]))
        self.convs = nn.ModuleList([StyledConv(widths[0], widths[0], sizes[0], enlarge=False)])
        self.to_image = nn.ModuleList([ToImage(widths[0], channels)])
        for level in range(1, len(sizes)):
            below, here, size = widths[level - 1], widths[level], sizes[level]
            self.convs.append(StyledConv(below, here, size, enlarge=True))
            self.convs.append(StyledConv(here, here, size, enlarge=False))
            self.to_image.append(ToImage(here, channels))
        self.layers = len(self.convs) + 1
        # As in the paper's code, an image layer takes the style of the convolution after it.
        inputs = [widths[0], *(w for pair in pairwise(widths) for w in pair)]
        self.lengths = [*inputs, *widths]
        numbers = [*range(len(inputs)), *range(1, self.layers, 2)]
        self.affine = EqualLinear(width, sum(self.lengths), bias=1.0)
        place = torch.tensor(numbers).repeat_interleave(torch.tensor(self.lengths))
        self.register_buffer("place", place, persistent=False)

    def forward(
        self,
        w: Tensor,
        other: Tensor | None = None,
        crossover: Tensor | None = None,
        *,
        random_noise: bool = False,
    ) -> Tensor:
        """Images ``(B, channels, *image_size)``, about -1..1 but not limited to it.

        Args:
            w: Style vectors ``(B, width)``.
            other: Style vectors for the layers from ``crossover`` on.
            crossover: First of these layers for each image ``(B,)``, 0 to ``layers``.
            random_noise: Fresh noise; else the fixed one.
        """
        with torch.autocast(w.device.type, enabled=False):
            styles = self.affine(w.float())
            if other is not None and crossover is not None:
                later = self.place >= crossover[:, None]
                styles = torch.where(later, self.affine(other.float()), styles)
        parts = styles.split(self.lengths, 1)
        to_convs, to_images = parts[: len(self.convs)], parts[len(self.convs) :]
        features = self.constant.expand(len(w), -1, -1, -1)
        features = features.contiguous(memory_format=torch.channels_last)
        image = features.new_zeros(())
        for number, (conv, style) in enumerate(zip(self.convs, to_convs, strict=True)):
            features = conv(features, style, random_noise)
            if number % 2 == 0:
                level = number // 2
                if level:
                    image = F.interpolate(image, scale_factor=2, mode="bilinear")
                image = image + self.to_image[level](features, to_images[level])
        return image


class DownConv(EqualConv):
    """Blurs with [1, 3, 3, 1], convolves and halves the size, in one convolution."""

    blur: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, *, gain: float) -> None:
        super().__init__(2, inputs, outputs, kernel, gain=gain)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        along = torch.zeros(kernel + 3, kernel)
        for tap in range(kernel):
            along[tap : tap + 4, tap] = taps
        # Convolving the kernel with the filter, as a matrix on the flattened kernel.
        self.register_buffer("blur", torch.kron(along, along).T.contiguous(), persistent=False)
        self.edge = kernel + 3

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H / 2, W / 2)``."""
        kernel = ((self.weight * self.scale).flatten(2) @ self.blur).unflatten(2, (self.edge,) * 2)
        return F.conv2d(image, kernel, self.bias, stride=2, padding=(self.edge - 2) // 2)


class ResidualDown(nn.Module):
    """Two convolutions that halve the size, and a shortcut; keeps the variance."""

    def __init__(self, inputs: int, outputs: int, *, spectral_norm: bool) -> None:
        super().__init__()
        self.first = _limited(EqualConv(2, inputs, inputs, gain=GAIN), spectral_norm)
        # The sum of two has twice the variance, so both lose a factor sqrt(2).
        self.second = _limited(DownConv(inputs, outputs, gain=1.0), spectral_norm)
        self.shortcut = _limited(DownConv(inputs, outputs, 1, gain=1 / GAIN), spectral_norm)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H / 2, W / 2)``."""
        inner = F.leaky_relu(self.first(features), SLOPE)
        outer: Tensor = F.leaky_relu(self.second(inner), SLOPE) + self.shortcut(features)
        return outer


class ResidualCritic(nn.Module):
    """The discriminator: residual levels, minibatch deviation, projection of the condition.

    Args:
        channels: Of the image.
        image_size: Of the image.
        conditions: Number of conditions; 0 for none.
        base: See :func:`level_widths`.
        largest: See :func:`level_widths`.
        spectral_norm: Keep every weight at norm 1 instead of equalising learning rates.
    """

    def __init__(
        self,
        channels: int,
        image_size: Sequence[int],
        conditions: int,
        *,
        base: int,
        largest: int,
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = level_sizes(image_size)[::-1]
        widths = level_widths(sizes, base, largest)
        last = widths[-1]
        self.from_image = _limited(EqualConv(2, channels, widths[0], 1), spectral_norm)
        self.levels = nn.Sequential(
            *(
                ResidualDown(here, below, spectral_norm=spectral_norm)
                for here, below in pairwise(widths)
            )
        )
        self.deviation = MinibatchDeviation()
        self.last = _limited(EqualConv(2, last + 1, last), spectral_norm)
        numbers = last * math.prod(sizes[-1])
        self.dense = _limited(EqualLinear(numbers, last, gain=GAIN), spectral_norm)
        self.head = _limited(EqualLinear(last, last if conditions else 1), spectral_norm)
        self.condition = Mapping(0, conditions, last, 2) if conditions else None

    def forward(self, image: Tensor, condition: Tensor | None = None, *, parts: int = 1) -> Tensor:
        """Logits ``(B,)``, float32, of images ``(B, channels, *image_size)``.

        Args:
            image: Images, about -1..1.
            condition: Numbers ``(B,)``.
            parts: Equal parts of the batch whose minibatch deviations are taken apart, such as
                real images before made ones.
        """
        image = image.contiguous(memory_format=torch.channels_last)
        features = self.levels(F.leaky_relu(self.from_image(image), SLOPE))
        with torch.autocast(image.device.type, enabled=False):
            features = torch.cat([self.deviation(p) for p in features.float().chunk(parts)])
            features = F.leaky_relu(self.last(features), SLOPE)
            vector = self.head(F.leaky_relu(self.dense(features.flatten(1)), SLOPE))
            if self.condition is None:
                logits: Tensor = vector.squeeze(1)
            else:
                direction = self.condition(None, condition)
                logits = (vector * direction).sum(1) / math.sqrt(vector.shape[1])
        return logits


def _places(vector: Tensor, like: Tensor) -> Tensor:
    """A value for each image and channel, to be multiplied with ``like``."""
    return vector.to(like.dtype)[:, :, None, None]


def _limited(layer: EqualConv | EqualLinear, spectral_norm: bool) -> EqualConv | EqualLinear:
    """The layer as it is, or with a weight of norm 1 that nothing scales."""
    if spectral_norm:
        spectral(layer)
        layer.scale = 1.0
    return layer
