"""What SRResNet and ESRGAN share: all but their blocks, their critic and its loss.

Both sharpen an interpolated image, by pixels alone or against a critic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medgen.errors import InputError
from medgen.losses import ADVERSARIAL, BOUNDARY, critic_parts, feature_distance, mean_inside
from medgen.methods._restoring import (
    Restored,
    middle_slice,
    require_slices,
    restored,
    start_near,
)
from medgen.networks.layers import frozen
from medgen.networks.sizes import require_multiples
from medgen.networks.super_resolution import Sharpener, TextureCritic

Step = tuple[str, Tensor, dict[str, Tensor]]


class Sharpens(nn.Module):
    """A network that refines an interpolated image, and a critic if one is wanted.

    Args:
        config: Of :class:`~medgen.methods.srresnet.SRResNet` or ESRGAN.
        blocks: The trunk of the network.
        loss: Name of the adversarial loss in :data:`~medgen.losses.ADVERSARIAL`.
        offset: Whether the critic's last layer has an offset.

    Raises:
        InputError: ``input_slices`` has no middle, or weights of losses contradict each other.
    """

    training_only = ("critic",)

    def __init__(
        self, config: Any, blocks: Sequence[nn.Module], loss: str, *, offset: bool = True
    ) -> None:
        super().__init__()
        require_slices(config.spatial_dims, config.input_slices)
        check_weights(config.pixel_weight, config.feature_weight, config.adversarial_weight)
        self.config, self.loss = config, loss
        self.spatial_dims = dims = config.spatial_dims
        self.input_slices, self.divisor = config.input_slices, config.fold
        self.channels = self.out_channels = config.channels
        inputs = config.channels * config.input_slices
        outputs = config.channels * (2 if config.spread else 1)
        self.network = Sharpener(dims, inputs, outputs, config.width, config.fold, blocks)
        start_near(self.network.tail, config.channels * config.fold**dims)
        self.critic: TextureCritic | None = None
        if config.adversarial_weight:
            self.critic = TextureCritic(
                dims, config.channels, config.critic_width, config.critic_stages, offset=offset
            )

    def optimizers(self) -> dict[str, Optimizer]:
        """One for the network and one for the critic if there is one; Adam as in the papers."""
        config = self.config
        optimizers: dict[str, Optimizer] = {
            "network": Adam(self.network.parameters(), config.learning_rate)
        }
        if self.critic is not None:
            optimizers["critic"] = Adam(self.critic.parameters(), config.critic_rate)
        return optimizers

    def forward(self, image: Tensor) -> Restored:
        """Interpolated image ``(B, slices * C, *s)`` to the sharp one ``(B, C, *s)``."""
        require_multiples(image.shape[2:], self.divisor)
        return restored(self.network(image), middle_slice(image, self.channels), self.channels)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[Step]:
        """The critic's loss if there is one, then the network's, which sees the updated critic.

        The papers take features of a network for photographs, whose weights would have to be
        downloaded; here the critic's own take their place.
        """
        config, critic, result = self.config, self.critic, self(batch["image"])
        target, output = batch["target"], result.output
        pixel = mean_inside((output - target).abs(), batch["mask"])
        total = config.pixel_weight * pixel + result.spread_loss(target, batch["mask"])
        parts = {"pixel": pixel.detach()}
        if critic is not None:
            critic_loss, network_loss = ADVERSARIAL[self.loss]
            real, fake = critic(target).real, critic(output.detach()).real
            scores = critic_parts(real, fake, boundary=BOUNDARY[self.loss])
            yield "critic", critic_loss(real, fake), scores
            with torch.no_grad():
                wanted = critic(target)
            with frozen(critic):
                judged = critic(output)
            adversarial = network_loss(judged.real, wanted.real)
            total = total + config.adversarial_weight * adversarial
            parts["adversarial"] = adversarial.detach()
            if config.feature_weight:
                features = feature_distance(judged.seen, wanted.seen)
                total = total + config.feature_weight * features
                parts["features"] = features.detach()
        yield "network", total, parts

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output`` and, unless switched off, ``spread``, each ``(B, C, *spatial)``."""
        result: Restored = self(image)
        return result.outputs()


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
