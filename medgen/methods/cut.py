"""CUT: from one kind of image to another, without pairs and without a way back.

Park et al., "Contrastive Learning for Unpaired Image-to-Image Translation" (ECCV 2020). The made
image must keep at every place what the source has there: features of a patch of it, from the
generator's own first half, must be more like those of the source's patch at the same place than
like those of its other patches. With heads H, patches s, features z = H(E(x)), v = H(E(G(x))) of
unit length and tau = 0.07

``NCE(x) = -mean_s log( exp(v_s . z_s / tau) / sum_t exp(v_s . z_t / tau) )``

``L_G = adv(D(G(x))) + lambda_x * NCE(x) + lambda_y * NCE(y)``

The last term asks the generator to leave images of the target domain alone. Both lambdas are 1;
the paper's FastCUT has 10 and 0. Adversarial loss: least squares.

``output`` is in 0..1, as the training images. Structures may be invented.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.config import Config
from medgen.losses import ADVERSARIAL, BOUNDARY, critic_parts
from medgen.methods._cycle import passing, signed, unsigned
from medgen.networks.layers import frozen
from medgen.networks.sizes import require_multiples
from medgen.networks.translation import PatchGAN, ResNetTranslator

critic_loss, _ = ADVERSARIAL["least_squares"]


class CUTConfig(Config):
    """Settings of the contrastive translation."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels, in both domains")
    width: int = Field(32, ge=1, description="generator: channels at full size")
    blocks: int = Field(6, ge=1, description="generator: residual blocks")
    fold: int = Field(
        1,
        ge=1,
        description="voxels per axis folded into channels before the generator's first layer and "
        "unfolded after its last",
    )
    critic_width: int = Field(32, ge=1, description="channels of the critic's first layer")
    critic_layers: int = Field(
        3, ge=1, description="halvings in the critic: 3 judge patches of 70 voxels a side, 2 of 34"
    )
    patches: int = Field(256, ge=2, description="places that are compared, for each layer")
    temperature: float = Field(0.07, gt=0, description="tau of the contrastive loss")
    head_width: int = Field(256, ge=1, description="length of the compared features")
    source_weight: float = Field(1.0, gt=0, description="lambda_x")
    target_weight: float = Field(1.0, ge=0, description="lambda_y; 0 as in FastCUT")
    generator_rate: float = Field(2e-4, gt=0, description="Adam, generator and heads")
    critic_rate: float = Field(2e-4, gt=0, description="Adam learning rate of the critic")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's moments")


class CUT(nn.Module):
    """Translates one domain into another."""

    Config = CUTConfig
    input_slices = 1
    training_only = ("critic", "heads")

    def __init__(self, config: CUTConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.channels = self.out_channels = config.channels
        self.generator = ResNetTranslator(
            dims, config.channels, config.channels,
            width=config.width, blocks=config.blocks, folding=config.fold,
        )  # fmt: skip
        self.divisor = self.generator.divisor
        self.critic = PatchGAN(
            dims, config.channels, width=config.critic_width, layers=config.critic_layers
        )
        # The image, both halvings, the first block and the middle one.
        self.stages = (0, 2, 3, 4, 4 + config.blocks // 2)
        width = config.width
        lengths = (config.channels * config.fold**dims, 2 * width, *[4 * width] * 3)
        self.heads = nn.ModuleList(_head(length, config.head_width) for length in lengths)

    def optimizers(self) -> dict[str, Optimizer]:
        """One for the critic, one for the generator with the heads."""
        config = self.config
        weights = [*self.generator.parameters(), *self.heads.parameters()]
        return {
            "critic": Adam(self.critic.parameters(), config.critic_rate, config.betas),
            "generator": Adam(weights, config.generator_rate, config.betas),
        }

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critic, then the generator: ``image`` and ``target`` need not belong together."""
        source, target = signed(batch["image"]), signed(batch["target"])
        features = self.generator.encode(source)
        made = torch.tanh(self.generator.decode(features[-1]))

        real, fake = self.critic(target)[0], self.critic(made.detach())[0]
        told = critic_parts(real, fake, boundary=BOUNDARY["least_squares"])
        yield "critic", critic_loss(real, fake), told

        with frozen(self.critic):
            adversarial = passing(self.critic(made)[0], "least_squares")
        contrast = self._contrast(features, made)
        loss = adversarial + self.config.source_weight * contrast
        parts = {"adversarial": adversarial.detach(), "contrast": contrast.detach()}
        if self.config.target_weight:
            features = self.generator.encode(target)
            same = self._contrast(features, torch.tanh(self.generator.decode(features[-1])))
            loss = loss + self.config.target_weight * same
            parts["same"] = same.detach()
        yield "generator", loss, parts

    def _contrast(self, source: list[Tensor], made: Tensor) -> Tensor:
        """The contrastive loss of a made image against its source's features, over the layers."""
        found = self.generator.encode(made, self.stages[-1])
        losses = []
        for stage, head in zip(self.stages, self.heads, strict=True):
            places = torch.randperm(source[stage][0, 0].numel(), device=made.device)
            places = places[: self.config.patches]
            wanted, given = (
                F.normalize(head(value.flatten(2)[:, :, places].transpose(1, 2).float()), dim=2)
                for value in (source[stage], found[stage])
            )
            losses.append(patch_nce(given, wanted.detach(), self.config.temperature))
        return torch.stack(losses).mean()

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output``: the image ``(B, C, *spatial)`` as one of the other domain, 0..1."""
        require_multiples(image.shape[2:], self.divisor)
        return {"output": unsigned(torch.tanh(self.generator(signed(image))))}


def patch_nce(given: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding each patch's own partner among its image's patches.

    Args:
        given: Features of length 1 of the made image's patches ``(B, patches, length)``.
        wanted: Those of the source's patches at the same places.
        temperature: What the cosines are divided by.
    """
    logits = given @ wanted.transpose(1, 2) / temperature
    own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return F.cross_entropy(logits.flatten(0, 1), own.flatten())


def _head(inputs: int, outputs: int) -> nn.Sequential:
    """Two fully connected layers on the features of one place."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
