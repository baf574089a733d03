"""Label maps as channels of the image, so that any image GAN makes annotated pairs.

As in Skandarani, Jodoin and Lalande, "GANs for Medical Image Synthesis: An Empirical Study"
(J Imaging 9(3):69, 2023), a generator that knows nothing of labels makes the image and its label
map together. Here each label, the background too, is one more channel: 1 where it is and -1 where
it is not. Of what a generator makes, the largest channel at a place is its label.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from medgen.annotated_sets import AnnotatedConfig, AnnotatedImages
from medgen.errors import InputError
from medgen.label_deformation import one_hot
from medgen.training.batches import Batch


def join(image: Tensor, labels: Tensor, label_count: int) -> Tensor:
    """Image ``(B, C, *spatial)`` and labels ``(B, 1, *spatial)`` as ``(B, C + label_count, ...)``.

    Raises:
        InputError: A label is not one of ``0 .. label_count - 1``.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= label_count:
        raise InputError(f"labels must be 0 to {label_count - 1}, got {low} to {high}")
    return torch.cat([image, 2 * one_hot(labels, label_count) - 1], dim=1)


def separate(joint: Tensor, label_count: int) -> tuple[Tensor, Tensor]:
    """The image and the labels ``(B, 1, *spatial)`` int64 of what :func:`join` put together.

    Raises:
        InputError: There are too few channels.
    """
    channels = joint.shape[1] - label_count
    if channels < 1:
        msg = f"an image with {label_count} labels has more than {label_count} channels"
        raise InputError(f"{msg}, got {joint.shape[1]}")
    return joint[:, :channels], joint[:, channels:].argmax(1, keepdim=True)


class JointConfig(AnnotatedConfig):
    """Settings of an annotated set whose labels become channels."""

    channels: int | None = Field(
        None, description="channels of a batch's images: the image's and one per label value"
    )


class JointLabels:
    """An annotated set; a batch's ``image`` holds the label map as further channels.

    Attributes:
        label_count: Number of labels with the background.
        channels: The image's and one for each label.

    Raises:
        InputError: The method makes another number of channels; or as for
            :class:`medgen.annotated_sets.AnnotatedImages`.
        LeakageError: See :func:`medgen.image_sets.split_images`.
    """

    Config = JointConfig
    # The labels are in the image; to the loop this is a set of plain images.
    label_names: tuple[str, ...] = ()

    def __init__(self, config: JointConfig) -> None:
        self.pairs = AnnotatedImages(
            AnnotatedConfig.model_validate(config.model_dump(exclude={"channels"}))
        )
        self.label_count = self.pairs.label_count
        self.channels = self.pairs.channels + self.label_count
        if config.channels not in (None, self.channels):
            raise InputError(
                f"the method makes {config.channels} channels, but {self.pairs.channels} of an "
                f"image and {self.label_count} of its labels are {self.channels}",
                f"Set config.channels to {self.channels}.",
            )
        self.image_size, self.y_down = self.pairs.image_size, self.pairs.y_down
        self.condition_names, self.facts = self.pairs.condition_names, self.pairs.facts

    def batch(self, index: int) -> Batch:
        """Training batch number ``index``."""
        return self._joint(self.pairs.batch(index))

    def validation_batch(self, index: int) -> Batch:
        """Batch number ``index`` of held-out images."""
        return self._joint(self.pairs.validation_batch(index))

    def _joint(self, batch: Batch) -> Batch:
        labels = batch.pop("labels")
        return batch | {"image": join(batch["image"], labels, self.label_count)}
