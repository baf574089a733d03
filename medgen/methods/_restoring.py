"""What the methods that restore an image share: their last layer, and its loss.

The last layer predicts a change of the middle input slice and, if the method says how far it may
be off, as many channels again with the logarithm of the scale of a Laplace distribution.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from medgen.errors import InputError
from medgen.losses import laplace_spread

# So light that only the last layer listens to it: its own weights learn as fast, as the steps of
# Adam do not depend on the size of a gradient. At 0.1 the features became those that tell how far
# off the image is, and networks that start near their input, which is nearly right already, never
# learned to change it.
SPREAD_WEIGHT = 1e-5
# Logarithms of the spread that are believed: in units of the image, 0.0003 to 7.
_LOG_SPREAD = (-8.0, 2.0)
# An untrained network's: about what interpolation or noise costs.
_FIRST_LOG_SPREAD = -3.0


class Restored(NamedTuple):
    """What a network makes of an image.

    Attributes:
        output: The image ``(B, C, *spatial)``.
        log_spread: Logarithm of the scale of its errors, same shape; None if not predicted.
    """

    output: Tensor
    log_spread: Tensor | None

    def spread_loss(self, target: Tensor, mask: Tensor) -> Tensor | float:
        """What a wrong spread costs, weighted; 0 without one."""
        if self.log_spread is None:
            return 0.0
        return SPREAD_WEIGHT * laplace_spread(self.output - target, self.log_spread, mask)

    def outputs(self) -> dict[str, Tensor]:
        """``output`` and, if predicted, ``spread`` above 0, in float32."""
        outputs = {"output": self.output.float()}
        if self.log_spread is not None:
            outputs["spread"] = self.log_spread.float().exp()
        return outputs


def require_slices(dims: int, input_slices: int) -> None:
    """Refuse neighbouring slices that have no middle, or that a volume holds already.

    Raises:
        InputError: An even number, or more than one in 3-D.
    """
    if input_slices % 2 == 0 or (dims == 3 and input_slices > 1):
        raise InputError(
            f"input_slices must be odd, and 1 for a 3-D network; got {input_slices} in {dims}-D"
        )


def middle_slice(image: Tensor, channels: int) -> Tensor:
    """The middle of neighbouring slices ``(B, slices * C, *spatial)``: ``(B, C, *spatial)``."""
    start = channels * (image.shape[1] // channels // 2)
    return image[:, start : start + channels]


def restored(raw: Tensor, base: Tensor | float, channels: int) -> Restored:
    """The image ``base`` changed by a network's raw output, with the spread if it holds one.

    Args:
        raw: ``(B, C or 2 C, *spatial)``.
        base: What the change is added to, ``(B, C, *spatial)``; 0 if raw is the image itself.
        channels: C.
    """
    change, spread = raw[:, :channels], raw[:, channels:]
    return Restored(base + change, spread.clamp(*_LOG_SPREAD) if spread.shape[1] else None)


@torch.no_grad()
def start_near(layer: nn.Module, kept: int, *, gain: float = 0.1) -> None:
    """Let an untrained network change little, and expect small errors.

    Args:
        layer: The last convolution.
        kept: How many of its outputs are the change; the others are logarithms of spreads.
        gain: Factor on its weights.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    weight.mul_(gain)
    bias.zero_()
    bias[kept:] = _FIRST_LOG_SPREAD
