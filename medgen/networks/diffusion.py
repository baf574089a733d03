"""The U-Net of denoising diffusion models, which is told how much noise there is.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020): residual blocks that add an
embedding of the step, self-attention in the middle, a skip connection from every block. The blocks
are MONAI's. Its whole network is not used, because its attention needs another package.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.nets.diffusion_model_unet import (
    DiffusionUNetResnetBlock,
    get_timestep_embedding,
)
from torch import Tensor, nn
from torch.nn import functional as F

# Standard deviation of the first weights that MONAI would set to 0.
SMALL = 0.01
HEAD = 64  # channels of a head of attention


class DiffusionUNet(nn.Module):
    """Noisy images and steps to images of the same shape.

    Args:
        dims: 2 or 3.
        channels: Of an image.
        features: Channels at each resolution, multiples of ``groups``; sizes of images must be
            multiples of 2 ** (their number - 1).
        blocks: Residual blocks at each resolution.
        groups: Of the normalisation.
    """

    def __init__(
        self, dims: int, channels: int, features: Sequence[int], blocks: int, groups: int
    ) -> None:
        super().__init__()
        self.width, told = features[0], 4 * features[0]
        self.told = nn.Sequential(
            nn.Linear(features[0], told), nn.SiLU(), nn.Linear(told, told), nn.SiLU()
        )

        def block(inputs: int, outputs: int) -> nn.Module:
            made: nn.Module = DiffusionUNetResnetBlock(
                dims, inputs, told, outputs, norm_num_groups=groups
            )
            # MONAI sets the last layer of every block to 0, so that nothing else in it would learn
            # in the first step.
            for weight in made.conv2.parameters():  # type: ignore[union-attr]
                nn.init.normal_(weight, std=SMALL)
            return made

        def conv(inputs: int, outputs: int, strides: int = 1) -> nn.Module:
            made: nn.Module = Convolution(
                dims, inputs, outputs, strides=strides, kernel_size=3, conv_only=True
            )
            return made

        self.first = conv(channels, features[0])
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.smaller, self.larger = nn.ModuleList(), nn.ModuleList()
        before, kept = features[0], []
        for level, width in enumerate(features):
            if level:
                self.smaller.append(conv(before, before, strides=2))
            for _ in range(blocks):
                self.down.append(block(before, width))
                before = width
                kept.append(width)
        self.middle = nn.ModuleList([block(before, before), block(before, before)])
        self.attention = Attention(before, groups)
        for level, width in reversed(list(enumerate(features))):
            for _ in range(blocks):
                self.up.append(block(before + kept.pop(), width))
                before = width
            if level:
                self.larger.append(nn.Sequential(nn.Upsample(scale_factor=2), conv(before, before)))
        self.last = nn.Sequential(nn.GroupNorm(groups, before), nn.SiLU(), conv(before, channels))
        self.blocks = blocks

    def forward(self, image: Tensor, step: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` and their steps ``(B,)`` to ``(B, C, *spatial)``."""
        told = self.told(get_timestep_embedding(step, self.width).to(image.dtype))
        value, kept = self.first(image), []
        for number, block in enumerate(self.down):
            if number and number % self.blocks == 0:
                value = self.smaller[number // self.blocks - 1](value)
            value = block(value, told)
            kept.append(value)
        value = self.middle[1](self.attention(self.middle[0](value, told)), told)
        for number, block in enumerate(self.up):
            if number and number % self.blocks == 0:
                value = self.larger[number // self.blocks - 1](value)
            value = block(torch.cat([value, kept.pop()], 1), told)
        result: Tensor = self.last(value)
        return result


class Attention(nn.Module):
    """Self-attention between all places, added to its input ``(B, C, *spatial)``.

    Args:
        width: Channels.
        groups: Of the normalisation.
    """

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.heads = width // HEAD if width % HEAD == 0 else 1
        self.norm = nn.GroupNorm(groups, width)
        self.seen = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, value: Tensor) -> Tensor:
        """The same shape."""
        places = self.norm(value).flatten(2).transpose(1, 2)
        split = self.seen(places).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, content = split.unbind(0)
        found = F.scaled_dot_product_attention(query, key, content)
        found = self.out(found.transpose(1, 2).flatten(2))
        return value + found.transpose(1, 2).reshape(value.shape)
