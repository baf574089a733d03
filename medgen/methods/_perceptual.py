"""The two steps of super-resolution that should look real: the critic's, then the network's."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from medgen.errors import InputError
from medgen.losses import ADVERSARIAL, BOUNDARY, critic_parts, feature_distance, mean_inside
from medgen.methods._restoring import Restored
from medgen.networks.layers import frozen
from medgen.networks.super_resolution import TextureCritic

Step = tuple[str, Tensor, dict[str, Tensor]]


def check_weights(pixel: float, feature: float, adversarial: float) -> None:
    """Refuse weights with which nothing would teach the network.

    Raises:
        InputError: Features of a critic that no adversarial loss trains, or no loss at all.
    """
    if feature and not adversarial:
        raise InputError(
            "feature_weight needs a critic, which only a positive adversarial_weight trains",
            "Set adversarial_weight, for example to 0.001, or feature_weight to 0.",
        )
    if not pixel + feature + adversarial:
        raise InputError("one of pixel_weight, feature_weight and adversarial_weight must be > 0")


def perceptual_losses(
    result: Restored,
    batch: dict[str, Tensor],
    critic: TextureCritic | None,
    loss: str,
    *,
    pixel_weight: float,
    feature_weight: float,
    adversarial_weight: float,
) -> Iterator[Step]:
    """The critic's loss if there is one, then the network's, which sees the updated critic.

    Args:
        result: What the network made of the batch.
        batch: ``target`` and ``mask``.
        critic: Judges images; None trains by pixels alone.
        loss: Name of the adversarial loss in :data:`~medgen.losses.ADVERSARIAL`.
        pixel_weight: Of the mean absolute error inside the mask.
        feature_weight: Of the difference of the critic's features. The papers take features of a
            network for photographs, whose weights would have to be downloaded.
        adversarial_weight: Of the adversarial loss.
    """
    target, output = batch["target"], result.output
    pixel = mean_inside((output - target).abs(), batch["mask"])
    total = pixel_weight * pixel + result.spread_loss(target, batch["mask"])
    parts = {"pixel": pixel.detach()}
    if critic is not None:
        real, fake = critic(target).real, critic(output.detach()).real
        scores = critic_parts(real, fake, boundary=BOUNDARY[loss])
        yield "critic", ADVERSARIAL[loss][0](real, fake), scores
        with torch.no_grad():
            wanted = critic(target)
        with frozen(critic):
            judged = critic(output)
        adversarial = ADVERSARIAL[loss][1](judged.real, wanted.real)
        total = total + adversarial_weight * adversarial
        parts["adversarial"] = adversarial.detach()
        if feature_weight:
            features = feature_distance(judged.seen, wanted.seen)
            total = total + feature_weight * features
            parts["features"] = features.detach()
    yield "network", total, parts
