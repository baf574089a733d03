"""Vector quantisation, and a network that knows which codes stand beside each other."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from medgen.networks.layers import CONV, CONVOLUTION, one_hot

# A code that stands for less than this part of its fair share of the vectors begins anew.
NEGLECTED = 0.1


class Codebook(nn.Module):
    """Replaces vectors by the nearest of a set that follows them (van den Oord et al. 2017).

    Codes are the running means of the vectors that they stand for (appendix A.1 of the paper), so
    no gradient reaches them. One that stands for nearly none takes the place of a random vector
    (Dhariwal et al., "Jukebox", 2020); so the first batch also gives codes their first places.

    Args:
        codes: How many.
        width: Length of a vector.
        decay: Of the running means.
    """

    vectors: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, codes: int, width: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", torch.randn(codes, width))
        self.register_buffer("sums", torch.zeros(codes, width))
        self.register_buffer("counts", torch.zeros(codes))

    def nearest(self, latent: Tensor) -> Tensor:
        """Numbers of the nearest codes ``(B, *grid)`` of ``(B, width, *grid)``."""
        # |z|^2 is the same for all codes.
        products = torch.tensordot(latent.movedim(1, -1), self.vectors.T, dims=1)
        return (self.vectors.square().sum(1) - 2 * products).argmin(-1)

    def look_up(self, codes: Tensor) -> Tensor:
        """Vectors ``(B, width, *grid)`` of codes ``(B, *grid)``."""
        return self.vectors[codes].movedim(-1, 1)

    @torch.no_grad()
    def update(self, latent: Tensor, codes: Tensor) -> None:
        """Take the vectors ``(B, width, *grid)`` of a batch into the codes they were given."""
        rows = latent.movedim(1, -1).flatten(0, -2).float()
        chosen = one_hot(codes.flatten(), len(self.counts))
        self.counts.lerp_(chosen.sum(0), 1 - self.decay)
        self.sums.lerp_(chosen.T @ rows, 1 - self.decay)
        share = len(rows) / len(self.counts)
        neglected = self.counts < NEGLECTED * share
        fresh = rows[torch.randint(len(rows), (len(self.counts),), device=rows.device)]
        self.counts.masked_fill_(neglected, share)
        self.sums.copy_(torch.where(neglected[:, None], fresh * share, self.sums))
        self.vectors.copy_(self.sums / self.counts[:, None])


class CausalConv(nn.Module):
    """A convolution that only sees what comes earlier in reading order, 2-D or 3-D.

    A masked convolution (van den Oord et al., "Pixel Recurrent Neural Networks", 2016): type A
    without the place itself, type B with it.

    Args:
        dims: 2 or 3.
        inputs: Channels.
        outputs: Channels.
        kernel: Edge of the kernel, odd.
        itself: Type B.
    """

    mask: Tensor

    def __init__(self, dims: int, inputs: int, outputs: int, kernel: int, *, itself: bool) -> None:
        super().__init__()
        self.conv: Any = CONV[dims](inputs, outputs, kernel, padding=kernel // 2)
        # Reading order of a flattened kernel is that of the image around its centre.
        shape = (kernel,) * dims
        number = torch.arange(prod(shape)).view(shape)
        seen = number < prod(shape) // 2 + int(itself)
        self.register_buffer("mask", seen.float(), persistent=False)
        self.apply_conv = CONVOLUTION[dims]

    def forward(self, image: Tensor) -> Tensor:
        """``(B, inputs, *spatial)`` to ``(B, outputs, *spatial)``."""
        weight = self.conv.weight * self.mask
        result: Tensor = self.apply_conv(image, weight, self.conv.bias, padding=self.conv.padding)
        return result


class CodePrior(nn.Module):
    """Logits of every code, given the codes before it in reading order.

    Args:
        dims: 2 or 3.
        codes: Number of different codes.
        width: Channels.
        layers: Residual blocks.
    """

    def __init__(self, dims: int, codes: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(codes, width)
        self.first = CausalConv(dims, width, width, 5, itself=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                CausalConv(dims, width, width, 3, itself=True),
                nn.ReLU(),
                CONV[dims](width, width, 1),
            )
            for _ in range(layers)
        )
        self.last = nn.Sequential(nn.ReLU(), CONV[dims](width, codes, 1))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes ``(B, *grid)`` to logits ``(B, codes, *grid)``."""
        seen = self.first(self.embed(codes).movedim(-1, 1))
        for block in self.blocks:
            seen = seen + block(seen)
        logits: Tensor = self.last(seen)
        return logits
