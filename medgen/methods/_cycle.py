"""What the methods with two generators share: the game of CycleGAN and of its relatives.

From images x of one kind and y of another that do not belong together, F learns to make y-like
images of x, and G x-like ones of y. Critics judge both. With d the mean absolute (or squared)
difference, the generators lower

``adv(D_y(F(x))) + adv(D_x(G(y))) + lambda * [d(G(F(x)), x) + d(F(G(y)), y)
+ identity * (d(F(y), y) + d(G(x), x))]``

Zhu et al. (ICCV 2017): least squares, lambda 10, identity 0.5, critics that also see a pool of
older images. Networks work in -1..1, as the papers' weights suppose; images enter and leave in
0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer, RMSprop

from medgen.config import Config
from medgen.losses import ADVERSARIAL, BOUNDARY, critic_parts
from medgen.networks.layers import frozen
from medgen.networks.pool import ImagePool
from medgen.networks.translation import PatchGAN

Step = tuple[str, Tensor, dict[str, Tensor]]
# A generator and an image to two equal results: one for the critic, one to compare with images.
Make = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


class CycleConfig(Config):
    """Settings of two generators and their critics."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels, in both domains")
    direction: Literal["forward", "backward"] = Field(
        "forward", description="what prediction does: source to target, or target to source"
    )
    width: int = Field(32, ge=1, description="generators: channels at full size")
    blocks: int = Field(6, ge=1, description="generators: residual blocks")
    fold: int = Field(
        1,
        ge=1,
        description="voxels per axis folded into channels before a generator's first layer and "
        "unfolded after its last",
    )
    critic_width: int = Field(32, ge=1, description="channels of a critic's first layer")
    critic_layers: int = Field(
        3, ge=1, description="halvings in a critic: 3 judge patches of 70 voxels a side, 2 of 34"
    )
    loss: Literal["least_squares", "non_saturating", "wasserstein"] = Field(
        "least_squares", description="adversarial loss"
    )
    clip: float | None = Field(None, gt=0, description="largest weight of the critics (WGAN)")
    critic_steps: int = Field(1, ge=1, description="critic steps for each of the generators")
    cycle_weight: float = Field(10.0, ge=0, description="weight of the way there and back")
    cycle_norm: Literal["l1", "l2"] = Field(
        "l1", description="difference to the start: absolute or squared"
    )
    identity_weight: float = Field(
        0.5,
        ge=0,
        description="weight, beside the cycle's, of leaving alone what is in the wanted domain",
    )
    feature_weight: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the adversarial loss that compares mean features of the critic",
    )
    pool_size: int = Field(50, ge=0, description="older images that the critics also see")
    optimizer: Literal["adam", "rmsprop"] = Field("adam", description="of all networks")
    betas: tuple[float, float] = Field((0.5, 0.999), description="Adam's moments")
    generator_rate: float = Field(2e-4, gt=0, description="learning rate of the generators")
    critic_rate: float = Field(2e-4, gt=0, description="learning rate of the critics")


def signed(image: Tensor) -> Tensor:
    """From 0..1 to -1..1."""
    return image * 2 - 1


def unsigned(image: Tensor) -> Tensor:
    """From -1..1 to 0..1, in float32."""
    return (image.float() + 1) / 2


def critic_of(config: CycleConfig) -> PatchGAN:
    """A critic of one domain."""
    return PatchGAN(
        config.spatial_dims,
        config.channels,
        width=config.critic_width,
        layers=config.critic_layers,
        offset=BOUNDARY[config.loss] is not None,
    )


def cycle_optimizers(method: Any) -> dict[str, Optimizer]:
    """One for both generators, one for both critics."""
    config: CycleConfig = method.config
    parts: dict[str, tuple[Sequence[nn.Module], float]] = {
        "generators": ((method.to_target, method.to_source), config.generator_rate),
        "critics": ((method.target_critic, method.source_critic), config.critic_rate),
    }
    found: dict[str, Optimizer] = {}
    for name, (networks, rate) in parts.items():
        weights = [weight for network in networks for weight in network.parameters()]
        if config.optimizer == "rmsprop":
            found[name] = RMSprop(weights, lr=rate)
        else:
            found[name] = Adam(weights, lr=rate, betas=config.betas)
    return found


def make_once(generator: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """What a generator makes of an image, for the critic and for the way back alike."""
    made = generator(image)
    return made, made


def cycle_game(
    method: Any, source: Tensor, target: Tensor, make: Make = make_once
) -> Iterator[Step]:
    """The generators' step, then the critics' on what these made, as in the paper's program.

    Args:
        method: Has ``config``; the generators ``to_target`` and ``to_source``; ``target_critic``,
            ``source_critic``, ``target_pool`` and ``source_pool``.
        source: Images ``(B, C, *spatial)`` in -1..1 of the one domain.
        target: As many of the other; none need belong to any of ``source``.
        make: Runs a generator; its second result carries the gradients of ways back and identity.
    """
    config: CycleConfig = method.config
    made_target, there = make(method.to_target, source)
    made_source, here = make(method.to_source, target)
    adversarial = torch.stack(
        [
            fooling(method.target_critic, made_target, target, config),
            fooling(method.source_critic, made_source, source, config),
        ]
    ).sum()
    away = difference(make(method.to_source, there)[1], source, config.cycle_norm)
    cycle = away + difference(make(method.to_target, here)[1], target, config.cycle_norm)
    loss = adversarial + config.cycle_weight * cycle
    parts = {"adversarial": adversarial.detach(), "cycle": cycle.detach()}
    if config.identity_weight:
        same = difference(make(method.to_target, target)[1], target, config.cycle_norm)
        same = same + difference(make(method.to_source, source)[1], source, config.cycle_norm)
        loss = loss + config.identity_weight * config.cycle_weight * same
        parts["identity"] = same.detach()
    yield "generators", loss, parts
    yield from critics_game(method, source, target, made_source, made_target)


def critics_game(
    method: Any, source: Tensor, target: Tensor, made_source: Tensor, made_target: Tensor
) -> Iterator[Step]:
    """The critics' steps: each on real images of its domain and on made ones, or older ones."""
    config: CycleConfig = method.config
    sides = (
        (method.target_critic, method.target_pool, target, made_target),
        (method.source_critic, method.source_pool, source, made_source),
    )
    for _ in range(config.critic_steps):
        losses, scores = [], []
        for critic, pool, real_images, made_images in sides:
            real, fake = critic(real_images)[0], critic(pool(made_images))[0]
            losses.append(ADVERSARIAL[config.loss][0](real, fake))
            scores.append(critic_parts(real, fake, boundary=BOUNDARY[config.loss]))
        parts = {name: torch.stack([side[name] for side in scores]).mean() for name in scores[0]}
        yield "critics", torch.stack(losses).sum(), parts
        if config.clip is not None:
            clip_weights((method.target_critic, method.source_critic), config.clip)


def fooling(critic: PatchGAN, made: Tensor, real: Tensor, config: CycleConfig) -> Tensor:
    """How badly made images pass for real ones; the critic itself is left alone.

    With ``feature_weight`` it is mixed with the squared difference of the critic's features,
    averaged over images and places (feature matching; Salimans et al. 2016).
    """
    with frozen(critic):
        scores, features = critic(made)
        loss = passing(scores, config.loss)
        if not config.feature_weight:
            return loss
        with torch.no_grad():
            wanted = critic(real)[1]
    distances = [
        (a.transpose(0, 1).flatten(1).mean(1) - b.transpose(0, 1).flatten(1).mean(1))
        .square()
        .mean()
        for a, b in zip(features, wanted, strict=True)
    ]
    share = config.feature_weight
    return (1 - share) * loss + share * torch.stack(distances).mean()


def passing(scores: Tensor, loss: str) -> Tensor:
    """A generator's adversarial loss, of what a critic says about its images.

    Of least squares it is the whole square, which the weights of CycleGAN and CUT are for; Mao et
    al. (2017) have half of it.
    """
    # No generator's loss here depends on the scores of real images.
    value = ADVERSARIAL[loss][1](scores, scores)
    return 2 * value if loss == "least_squares" else value


def difference(image: Tensor, start: Tensor, norm: str) -> Tensor:
    """Mean absolute (``l1``) or mean squared (``l2``) difference."""
    return F.l1_loss(image, start) if norm == "l1" else F.mse_loss(image, start)


@torch.no_grad()
def clip_weights(networks: Sequence[nn.Module], limit: float) -> None:
    """Keep every weight within the limit (Arjovsky et al. 2017)."""
    for network in networks:
        for weight in network.parameters():
            weight.clamp_(-limit, limit)


def pools(config: CycleConfig) -> tuple[ImagePool, ImagePool]:
    """One of made target images, one of made source images."""
    return ImagePool(config.pool_size), ImagePool(config.pool_size)
