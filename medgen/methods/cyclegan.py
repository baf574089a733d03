"""CycleGAN: from one kind of image to another and back, without pairs.

Zhu et al., "Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks" (ICCV
2017). Two ResNet generators and two patch critics; the losses are those of
:mod:`medgen.methods._cycle`. Relatives that differ in settings:

- ``dualgan`` (Yi et al., ICCV 2017): Wasserstein critics with clipped weights, L1 on the way back,
  RMSprop, no identity loss, no pool. Lambda is CycleGAN's 10; the paper has 100 to 1000.
- ``discogan`` (Kim et al., ICML 2017): the cross-entropy of the first GANs, mean squared
  reconstruction with a lambda of 1, matching of the critics' features, no identity loss, no pool.

Here they all have the same generators and critics, so that a table compares their losses.

``output`` is in 0..1, as the training images; ``direction`` says which way prediction goes. Nothing
ties a made image to the truth but what training finds plausible: structures may be invented.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from medgen.methods._cycle import (
    CycleConfig,
    critic_of,
    cycle_game,
    cycle_optimizers,
    pools,
    signed,
    unsigned,
)
from medgen.networks.sizes import require_multiples
from medgen.networks.translation import ResNetTranslator


class CycleGANConfig(CycleConfig):
    """Settings of CycleGAN, DualGAN and DiscoGAN."""


class CycleGAN(nn.Module):
    """Translates between two domains."""

    Config = CycleGANConfig
    input_slices = 1
    training_only = ("target_critic", "source_critic", "target_pool", "source_pool")

    def __init__(self, config: CycleGANConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.channels = self.out_channels = config.channels
        self.to_target, self.to_source = Translator(config), Translator(config)
        self.target_critic, self.source_critic = critic_of(config), critic_of(config)
        self.target_pool, self.source_pool = pools(config)
        self.divisor = self.to_target.network.divisor

    def optimizers(self) -> dict[str, Optimizer]:
        """One for both generators, one for both critics."""
        return cycle_optimizers(self)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The generators, then the critics: ``image`` and ``target`` need not belong together."""
        yield from cycle_game(self, signed(batch["image"]), signed(batch["target"]))

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output``: the image ``(B, C, *spatial)`` as one of the other domain, 0..1."""
        require_multiples(image.shape[2:], self.divisor)
        forward = self.config.direction == "forward"
        network = self.to_target if forward else self.to_source
        return {"output": unsigned(network(signed(image)))}


class Translator(nn.Module):
    """A generator of images in -1..1."""

    def __init__(self, config: CycleGANConfig) -> None:
        super().__init__()
        self.network = ResNetTranslator(
            config.spatial_dims,
            config.channels,
            config.channels,
            width=config.width,
            blocks=config.blocks,
            folding=config.fold,
        )

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the same shape."""
        return torch.tanh(self.network(image))
