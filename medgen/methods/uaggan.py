"""uagGAN: a CycleGAN that says where it changes the image, first taught by pairs.

Abu-Srhan et al., "Paired-unpaired Unsupervised Attention Guided GAN with transfer learning for
bidirectional brain MR-CT synthesis" (Comput Biol Med 2021). A generator makes a content image C and
an attention mask A in 0..1 (Mejjati et al. 2018; Tang et al. 2019) and gives

``F(x) = A * C + (1 - A) * x``

so that what A leaves out stays as it was. With A = 1 it is a plain CycleGAN.

Training has two runs. With ``paired`` each generator learns from aligned pairs by an adversarial
loss, the absolute error (weight 100) and a content loss. The second run begins with the weights of
the first (``start_from``) and plays CycleGAN's game on unpaired images, see
:mod:`medgen.methods._cycle`. The paper's content loss and its transfer learning take a network
trained on photographs, which medgen does not download: here the content loss compares features of
the critic, and generators begin from random weights.

The unpaired game has a way out: with A = 0 nothing changes, the way back is perfect, and where A is
0 no critic can teach C. Mejjati et al. stop training their attention after a while, because it
collapses. Here the way back teaches C alone, and A learns from the critics only. These begin anew
in the second run, and while they know nothing the way back would undo what pairs have taught: so
they may first learn alone (``critic_lead``).

``output`` is in 0..1, as the training images; :meth:`UAGGAN.look` also shows A.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from medgen.losses import feature_distance
from medgen.methods._cycle import (
    CycleConfig,
    Step,
    critic_of,
    critics_game,
    cycle_game,
    cycle_optimizers,
    passing,
    pools,
    signed,
    unsigned,
)
from medgen.networks.counter import Counter
from medgen.networks.layers import frozen
from medgen.networks.sizes import require_multiples
from medgen.networks.translation import PatchGAN, ResNetTranslator


class UAGGANConfig(CycleConfig):
    """Settings of the attention-guided translation."""

    paired: bool = Field(False, description="learn from aligned pairs: the first of the two runs")
    l1_weight: float = Field(100.0, gt=0, description="paired: weight of the absolute error")
    content_weight: float = Field(10.0, ge=0, description="paired: weight of the critic's features")
    identity_weight: float = Field(0.0, ge=0, description="as in CycleGAN; the paper has none")
    critic_lead: int = Field(
        0,
        ge=0,
        description="unpaired: steps at the start in which only the critics learn; for trained "
        "generators, which critics that know nothing would spoil",
    )


class UAGGAN(nn.Module):
    """Translates between two domains where its attention lies."""

    Config = UAGGANConfig
    input_slices = 1
    training_only = ("target_critic", "source_critic", "target_pool", "source_pool", "begun")

    def __init__(self, config: UAGGANConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = config.spatial_dims
        self.channels = self.out_channels = config.channels
        self.to_target, self.to_source = Attentive(config), Attentive(config)
        self.target_critic, self.source_critic = critic_of(config), critic_of(config)
        self.target_pool, self.source_pool = pools(config)
        self.begun = Counter()  # steps of the unpaired game
        self.divisor = self.to_target.network.divisor

    def optimizers(self) -> dict[str, Optimizer]:
        """One for both generators, one for both critics."""
        return cycle_optimizers(self)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The generators, then the critics; ``target`` belongs to ``image`` only if paired."""
        source, target = signed(batch["image"]), signed(batch["target"])
        if self.config.paired:
            yield from self._paired(source, target)
        elif self.begun.advance() >= self.config.critic_lead:
            yield from cycle_game(self, source, target, make=Attentive.both)
        else:
            with torch.no_grad():
                made_target, made_source = self.to_target(source), self.to_source(target)
            yield from critics_game(self, source, target, made_source, made_target)

    def _paired(self, source: Tensor, target: Tensor) -> Iterator[Step]:
        """Both generators against truth and critics, then the critics."""
        config = self.config
        made_target, made_source = self.to_target(source), self.to_source(target)
        l1 = F.l1_loss(made_target, target) + F.l1_loss(made_source, source)
        sides = (
            self._seen(self.target_critic, made_target, target),
            self._seen(self.source_critic, made_source, source),
        )
        adversarial, content = (torch.stack(values).sum() for values in zip(*sides, strict=True))
        loss = adversarial + config.l1_weight * l1 + config.content_weight * content
        parts = {"adversarial": adversarial, "l1": l1, "content": content}
        yield "generators", loss, {name: part.detach() for name, part in parts.items()}
        yield from critics_game(self, source, target, made_source, made_target)

    def _seen(self, critic: PatchGAN, made: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """How badly a made image passes for real, and how far its features are from the truth's."""
        with frozen(critic):
            scores, features = critic(made)
            with torch.no_grad():
                wanted = critic(real)[1]
        return passing(scores, self.config.loss), feature_distance(features, wanted)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``output``: the image ``(B, C, *spatial)`` as one of the other domain, 0..1."""
        return {"output": self.look(image)[0]}

    def look(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The image as one of the other domain, 0..1, and the attention ``(B, 1, *spatial)``."""
        require_multiples(image.shape[2:], self.divisor)
        forward = self.config.direction == "forward"
        network = self.to_target if forward else self.to_source
        made, attention = network.look(signed(image))
        return unsigned(made), attention.float()


class Attentive(nn.Module):
    """A generator of a content image and of the mask of where to put it, in -1..1."""

    def __init__(self, config: UAGGANConfig) -> None:
        super().__init__()
        self.network = ResNetTranslator(
            config.spatial_dims,
            config.channels,
            config.channels + 1,
            width=config.width,
            blocks=config.blocks,
            folding=config.fold,
        )

    def look(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image ``(B, C, *spatial)`` to the result and its attention ``(B, 1, *spatial)``."""
        content, attention = self._parts(image)
        return _blend(image, content, attention), attention

    def both(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """The result twice; the second one's gradients reach the content but not the attention."""
        content, attention = self._parts(image)
        fixed = attention.detach()
        return _blend(image, content, attention), _blend(image, content, fixed)

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C, *spatial)`` to the same shape."""
        return self.look(image)[0]

    def _parts(self, image: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.network(image)
        return torch.tanh(raw[:, :-1]), torch.sigmoid(raw[:, -1:])


def _blend(image: Tensor, content: Tensor, attention: Tensor) -> Tensor:
    return attention * content + (1 - attention) * image
