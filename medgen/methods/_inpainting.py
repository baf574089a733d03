"""What the inpainting methods share: how an image with a hole goes in and comes out.

Their input is, for each of the neighbouring slices, the image with the hole emptied and the hole
itself, 1 inside. Outside the hole the output is the input: only what is missing is made.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from medgen.methods._restoring import Restored, restored

# Images are scaled so that nearly all of their values lie between 0 and 1.
DATA_RANGE = 1.0


class Slices(NamedTuple):
    """An input taken apart.

    Attributes:
        images: Slices with the holes emptied ``(B, slices, C, *spatial)``.
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
    images, holes = slices[:, :, :channels], slices[:, :, channels:]
    # Whatever stands in a hole must not matter.
    return Slices(images * (1 - holes), holes)
