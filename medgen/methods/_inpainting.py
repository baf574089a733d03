"""What the inpainting methods share: how an image with a hole goes in and comes out.

Their input is, for each of the neighbouring slices, the image, whose hole a classical method has
filled, and the hole itself, 1 inside. Outside the hole the output is the input: only what is
missing is made. A method either corrects the given filling or does not look at it
(:meth:`Slices.emptied`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor

from medgen.methods._restoring import Restored, restored, start_near
from medgen.networks.folding import fold, unfold
from medgen.networks.sizes import require_multiples

# Images are scaled so that nearly all of their values lie between 0 and 1.
DATA_RANGE = 1.0
# How often the U-Net halves the size.
HALVINGS = 4
# Of the last layer's weights: an untrained network changes the given filling by less than a
# hundredth, so that training never has to find its way back to it.
FIRST_GAIN = 0.01


class Slices(NamedTuple):
    """An input taken apart.

    Attributes:
        images: Slices as given, with something in their holes ``(B, slices, C, *spatial)``.
        holes: ``(B, slices, 1, *spatial)``, 1 inside.
    """

    images: Tensor
    holes: Tensor

    @property
    def image(self) -> Tensor:
        """The middle slice ``(B, C, *spatial)``."""
        return self.images[:, self.images.shape[1] // 2]

    @property
    def hole(self) -> Tensor:
        """Its hole ``(B, 1, *spatial)``."""
        return self.holes[:, self.holes.shape[1] // 2]

    def emptied(self) -> Slices:
        """The same with 0 in the holes: whatever stood there cannot matter any more."""
        return self._replace(images=self.images * (1 - self.holes))

    def with_middle(self, image: Tensor) -> Slices:
        """The same with another middle slice."""
        middle = self.images.shape[1] // 2
        before, after = self.images[:, :middle], self.images[:, middle + 1 :]
        return self._replace(images=torch.cat([before, image[:, None], after], dim=1))

    def together(self) -> Tensor:
        """As a network sees them: ``(B, slices * (C + 1), *spatial)``."""
        return torch.cat([self.images, self.holes], dim=2).flatten(1, 2)

    def filled(self, raw: Tensor, base: Tensor | float = 0.0) -> Restored:
        """The middle slice with ``base`` and the network's raw change of it in its hole."""
        made = restored(raw, base, self.image.shape[1])
        return made._replace(output=torch.lerp(self.image, made.output.float(), self.hole))


def apart(image: Tensor, channels: int) -> Slices:
    """The slices and holes of an input ``(B, slices * (C + 1), *spatial)``; ``channels`` is C."""
    slices = image.unflatten(1, (-1, channels + 1))
    return Slices(slices[:, :, :channels], slices[:, :, channels:])


class FillingUNet(BasicUNet):
    """A U-Net that corrects what stands in a hole: the filling of a classical method.

    Args:
        dims: 2 or 3.
        channels: Image channels, without the hole.
        slices: Neighbouring slices that it sees.
        features: Channels at its five resolutions.
        factor: Voxels per axis folded into channels.
        spread: Whether to predict the size of the error as well.
    """

    def __init__(
        self,
        dims: int,
        channels: int,
        slices: int,
        features: Sequence[int],
        factor: int,
        *,
        spread: bool,
    ) -> None:
        folded = factor**dims
        super().__init__(
            spatial_dims=dims,
            in_channels=(channels + 1) * slices * folded,
            out_channels=channels * (2 if spread else 1) * folded,
            features=(*features, features[0]),
            norm="batch",
        )
        self.changes = channels * folded  # outputs of the last layer that are no spread
        start_near(self.final_conv, self.changes, gain=FIRST_GAIN)
        self.factor = factor
        self.divisor = 2**HALVINGS * factor
        # On CPUs 2-D convolutions run about 1.5 times faster in this layout.
        self.layout = torch.channels_last if dims == 2 else torch.channels_last_3d
        self.to(memory_format=self.layout)  # type: ignore[call-overload]

    @torch.no_grad()
    def soften(self, strength: float) -> None:
        """Make only this part of every correction from now on, 1 being all."""
        for values in (self.final_conv.weight, self.final_conv.bias):
            assert isinstance(values, Tensor)
            values[: self.changes] *= strength

    def fill(self, slices: Slices) -> Restored:
        """The middle slice with its filling corrected.

        Raises:
            InputError: The size is not a multiple of ``divisor``.
        """
        require_multiples(slices.image.shape[2:], self.divisor)
        seen = fold(slices.together(), self.factor).contiguous(memory_format=self.layout)
        return slices.filled(unfold(self(seen), self.factor), slices.image)
