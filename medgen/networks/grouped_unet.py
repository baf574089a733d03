"""MONAI's U-Net with group normalisation.

Batch normalisation keeps the statistics of training images, noisy or with patches pasted in, which
do not fit the clean images it meets in use.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import BasicUNet

from medgen.errors import InputError


def grouped_unet(
    dims: int, inputs: int, outputs: int, features: Sequence[int], groups: int
) -> BasicUNet:
    """A U-Net of five resolutions.

    Args:
        dims: 2 or 3.
        inputs: Channels that go in.
        outputs: Channels that come out.
        features: Channels at each resolution, multiples of ``groups``.
        groups: Of channels, normalised together.

    Raises:
        InputError: ``features`` cannot be divided into groups.
    """
    if any(width % groups for width in features):
        raise InputError(f"features must be multiples of {groups}, got {tuple(features)}")
    return BasicUNet(
        spatial_dims=dims,
        in_channels=inputs,
        out_channels=outputs,
        features=(*features, features[0]),
        norm=("group", {"num_groups": groups}),
    )
