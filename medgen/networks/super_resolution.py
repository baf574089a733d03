"""Networks for super-resolution, and the critic that judges their texture. ``dims`` is 2 or 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.networks.folding import fold, unfold
from medgen.networks.layers import BATCH_NORM, conv, spectral

LEAK = 0.2  # slope of leaky ReLUs below 0


class ResidualBlock(nn.Module):
    """Convolution, ReLU, convolution, and the input added.

    With batch normalisation behind both convolutions and a learnt slope below 0 as in SRResNet
    (Ledig et al. 2017), or without any as in EDSR (Lim et al. 2017).
    """

    def __init__(self, dims: int, width: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(dims, width, width, bias=not batch_norm)]
        if batch_norm:
            layers.append(BATCH_NORM[dims](width))
        layers += [
            nn.PReLU() if batch_norm else nn.ReLU(),
            conv(dims, width, width, bias=not batch_norm),
        ]
        if batch_norm:
            layers.append(BATCH_NORM[dims](width))
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, width, *spatial)`` to the same shape."""
        result: Tensor = features + self.layers(features)
        return result


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it; a fifth of the last one is added.

    The residual dense block of ESRGAN (Wang et al. 2018).
    """

    def __init__(self, dims: int, width: int, growth: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        inputs = [width + growth * number for number in range(5)]
        self.convs = nn.ModuleList(
            [conv(dims, a, growth if a != inputs[-1] else width) for a in inputs]
        )
        for layer in self.convs:  # ESRGAN's smaller initialisation
            weight = layer.weight
            assert isinstance(weight, Tensor)
            nn.init.kaiming_normal_(weight, a=LEAK)
            weight.data.mul_(0.1)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, width, *spatial)`` to the same shape."""
        seen = [features]
        for layer in self.convs[:-1]:
            seen.append(F.leaky_relu(layer(torch.cat(seen, 1)), LEAK))
        result: Tensor = features + self.scale * self.convs[-1](torch.cat(seen, 1))
        return result


class RRDB(nn.Module):
    """Residual in residual: three dense blocks, of whose change a fifth is added (ESRGAN 2018)."""

    def __init__(self, dims: int, width: int, growth: int, scale: float = 0.2) -> None:
        super().__init__()
        self.scale = scale
        self.blocks = nn.Sequential(*[DenseBlock(dims, width, growth, scale) for _ in range(3)])

    def forward(self, features: Tensor) -> Tensor:
        """``(B, width, *spatial)`` to the same shape."""
        result: Tensor = features + self.scale * (self.blocks(features) - features)
        return result


class Sharpener(nn.Module):
    """Blocks at low resolution between two foldings (Ledig et al. 2017; Shi et al. 2016).

    The image comes in already interpolated; a convolution of its folded voxels takes the place of
    the paper's first layer.

    Args:
        dims: 2 or 3.
        inputs: Channels of the image.
        outputs: Channels of the result.
        width: Channels of the blocks.
        factor: Voxels per axis that are folded into channels.
        blocks: What keeps features ``(B, width, *spatial)`` in their shape, one after the other.
    """

    def __init__(
        self,
        dims: int,
        inputs: int,
        outputs: int,
        width: int,
        factor: int,
        blocks: Sequence[nn.Module],
    ) -> None:
        super().__init__()
        self.factor = factor
        self.head = conv(dims, inputs * factor**dims, width)
        self.trunk = nn.Sequential(*blocks, conv(dims, width, width))
        self.tail = conv(dims, width, outputs * factor**dims)
        # On CPUs 2-D convolutions run faster in this layout.
        self.layout = torch.channels_last if dims == 2 else torch.channels_last_3d
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to ``(B, outputs, *spatial)``; multiples of the factor."""
        folded = fold(image, self.factor).contiguous(memory_format=self.layout)
        features = self.head(folded)
        return unfold(self.tail(features + self.trunk(features)), self.factor)


class Judgement(NamedTuple):
    """What a critic says of images, and what it saw.

    Attributes:
        real: Raw outputs ``(B,)``, large for images that look real.
        seen: Features of each resolution, finest first.
    """

    real: Tensor
    seen: list[Tensor]


class TextureCritic(nn.Module):
    """SRGAN's discriminator (Ledig et al. 2017) for images of any size.

    Pairs of convolutions, the second of stride 2, whose widths double. Two differences from the
    paper: spectral normalisation (Miyato et al. 2018) instead of that of batches, and the mean
    over the image instead of layers that fit one size only.

    Args:
        dims: 2 or 3.
        channels: Of the image.
        width: Channels of the first pair.
        stages: Pairs.
        offset: Whether the output has one; to a loss of differences it would mean nothing.
    """

    def __init__(
        self, dims: int, channels: int, width: int, stages: int, *, offset: bool = True
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        inputs = channels
        for stage in range(stages):
            outputs = width * 2**stage
            self.stages.append(
                nn.Sequential(
                    spectral(conv(dims, inputs, outputs)),
                    nn.LeakyReLU(LEAK),
                    spectral(conv(dims, outputs, outputs, 4, 2)),
                    nn.LeakyReLU(LEAK),
                )
            )
            inputs = outputs
        self.judge = conv(dims, inputs, 1, 1, bias=offset)

    def forward(self, image: Tensor) -> Judgement:
        """Judge images ``(B, C, *spatial)``."""
        seen = []
        for stage in self.stages:
            image = stage(image)
            seen.append(image)
        return Judgement(self.judge(image).flatten(1).mean(1).float(), seen)
