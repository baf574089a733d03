"""Gated convolutions: networks that learn which of their features to believe, place by place.

Yu et al., "Free-Form Image Inpainting with Gated Convolution" (ICCV 2019). In a hole there is
nothing to convolve; a gate per channel and place says how much of a feature counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.networks.layers import CONV, conv, spectral

# Dilations of the four layers at the coarsest resolution: how far a network looks into a hole.
DILATIONS = (2, 4, 8, 16)
# E[(ELU(k f) sigmoid(g))^2] = 1 for standard normal f and g: with this factor on the weights of the
# features, these keep their mean square from layer to layer.
KEEP = 2.5


class GatedConvolution(nn.Module):
    """``ELU(features) * sigmoid(gate)``, both from one convolution of twice the channels."""

    def __init__(
        self, dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1,
        dilation: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.both = CONV[dims](inputs, 2 * outputs, kernel, stride, padding, dilation)
        # Gate and ELU together make features smaller. Over the paper's seventeen layers in a row,
        # the usual initial weights would leave nothing of them.
        scale = self.both.weight[0].numel() ** -0.5
        nn.init.normal_(self.both.weight[:outputs], std=KEEP * scale)
        nn.init.normal_(self.both.weight[outputs:], std=scale)
        nn.init.zeros_(self.both.bias)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to ``(B, outputs, *spatial / stride)``."""
        features, gate = self.both(image).chunk(2, dim=1)
        return F.elu(features) * torch.sigmoid(gate)


class GatedNetwork(nn.Module):
    """One of the paper's two networks: down twice, dilated layers, up twice; no skips, no norm.

    Args:
        dims: 2 or 3.
        inputs: Channels it sees.
        outputs: Channels of its raw result, from a plain convolution.
        width: Channels at full size; 2 and 4 times as many below (the paper: 48).
    """

    def __init__(self, dims: int, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        w = width
        deep = [GatedConvolution(dims, 4 * w, 4 * w, dilation=rate) for rate in DILATIONS]
        self.layers = nn.Sequential(
            GatedConvolution(dims, inputs, w, kernel=5),
            GatedConvolution(dims, w, 2 * w, stride=2),
            GatedConvolution(dims, 2 * w, 2 * w),
            GatedConvolution(dims, 2 * w, 4 * w, stride=2),
            GatedConvolution(dims, 4 * w, 4 * w),
            GatedConvolution(dims, 4 * w, 4 * w),
            *deep,
            GatedConvolution(dims, 4 * w, 4 * w),
            GatedConvolution(dims, 4 * w, 4 * w),
            nn.Upsample(scale_factor=2),
            GatedConvolution(dims, 4 * w, 2 * w),
            GatedConvolution(dims, 2 * w, 2 * w),
            nn.Upsample(scale_factor=2),
            GatedConvolution(dims, 2 * w, w),
            GatedConvolution(dims, w, -(-w // 2)),
            conv(dims, -(-w // 2), outputs),
        )

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to ``(B, outputs, *spatial)``, multiples of 4."""
        result: Tensor = self.layers(image)
        return result


class SNPatchCritic(nn.Module):
    """SN-PatchGAN: every value of the last strided layer judges its own patch and feature.

    Kernels of 5, strides of 2 and spectral norm throughout; the paper's channels are 64, 128 and
    four times 256.
    """

    def __init__(self, dims: int, inputs: int, features: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in pairwise((inputs, *features[:-1])):
            layers += [spectral(conv(dims, a, b, 5, 2)), nn.LeakyReLU(0.2)]
        # Verdicts of both signs; under the hinge loss a bias has no gradient until the first
        # patches are told apart.
        last = spectral(conv(dims, features[-2], features[-1], 5, 2, bias=False))
        self.layers = nn.Sequential(*layers, last)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to verdicts ``(B, features[-1], *patches)`` in float32."""
        verdicts: Tensor = self.layers(image)
        return verdicts.float()
