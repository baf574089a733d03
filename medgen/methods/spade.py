"""SPADE: from a label map to an image that could have it, and from noise to both.

Park et al., "Semantic Image Synthesis with Spatially-Adaptive Normalization" (CVPR 2019). The
generator ``G(m, z, c)`` grows an image from a latent vector ``z``, and the label map ``m`` scales
and shifts its normalised features at every resolution. Patch critics ``D`` at several scales judge
image and labels together, under the hinge loss:

``L_D = E max(0, 1 - D(x, m)) + E max(0, 1 + D(G(m, z), m))``
``L_G = -E D(G(m, z), m) + 10 * |features_D(x) - features_D(G)| + 0.05 * KL(q(z|x) || N(0, I))``

As in the paper's multi-modal variant an encoder ``q(z|x)`` says in which style a real image is, but
only half of each batch is drawn in the style of its own image. The other half is drawn in a random
style, as it will be in use: were all styles encoded ones, they would tell what the condition is
there to tell. An absolute difference is least at the median, so it still favours the own style. The
perceptual loss is left out (it needs a downloaded network). The condition ``c`` (a contrast, a
disease) goes with the latent vector into the generator, and beside the labels into the critic.

Where label maps come from (``mask_sampler``): ``deform`` bends maps kept from training batches
(:class:`medgen.label_deformation.LabelBank`; these maps are then a part of the weights), ``vae``
decodes them from a variational autoencoder of one-hot label maps, trained by its evidence bound,
``none`` leaves them to the caller of :meth:`SPADE.paint`.

``image`` is in -1..1 as the training images were; ``labels`` are the label map it was drawn from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from medgen.augmentation import DiffAugment
from medgen.config import Config
from medgen.errors import InputError
from medgen.label_deformation import LabelBank, one_hot
from medgen.losses import ADVERSARIAL, critic_parts, kl_to_standard_normal
from medgen.networks import layers
from medgen.networks.label_vae import LabelDecoder, LabelEncoder
from medgen.networks.sizes import require_multiples
from medgen.networks.spade import (
    MultiScaleCritic,
    SpadeGenerator,
    StyleEncoder,
    feature_matching,
)

critic_loss, generator_loss = ADVERSARIAL["hinge"]
# What the critic tells about one scale: its logits and its features.
Judgement = tuple[Tensor, list[Tensor]]


class SPADEConfig(Config):
    """Settings of generator, critic and mask sampler."""

    spatial_dims: Literal[2, 3] = Field(2, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels")
    image_size: tuple[int, ...] = Field((64, 64), description="voxels along each axis")
    conditions: int = Field(0, ge=0, description="number of conditions; 0 for none")
    labels: int = Field(4, ge=2, le=256, description="number of label values with the background")
    latent: int = Field(32, ge=1, description="length of the image's latent vector (style)")
    features: tuple[int, ...] = Field(
        (64, 64, 48, 32, 16),
        min_length=2,
        description="generator channels from the coarsest resolution to the finest, each twice "
        "the one before",
    )
    modulation: int = Field(32, ge=1, description="channels between labels and modulation")
    critic_features: tuple[int, ...] = Field(
        (32, 64, 128), min_length=1, description="critic channels after each halving of the size"
    )
    critic_scales: int = Field(2, ge=1, description="critics, each at half the last one's size")
    feature_matching: float = Field(10.0, ge=0, description="weight of the features' distance")
    divergence: float = Field(0.05, ge=0, description="weight of the style's divergence in nats")
    augment: Literal["none", "diffaugment"] = Field(
        "none", description="shift and cut out images and labels alike before the critic sees them"
    )
    mask_sampler: Literal["none", "deform", "vae"] = Field(
        "deform", description="where label maps come from: training maps bent, or an autoencoder"
    )
    bank_size: int = Field(64, ge=1, description="deform: training maps kept, of all conditions")
    deformation: float = Field(
        0.08, ge=0, description="deform: deviation of the control vectors in half extents"
    )
    affine: float = Field(
        0.04, ge=0, description="deform: deviation of scale, rotation (radian) and shift"
    )
    control_points: int = Field(4, ge=2, description="deform: control points along each axis")
    mirror_axes: tuple[int, ...] = Field((), description="deform: axes of symmetry to mirror along")
    mask_latent: int = Field(32, ge=1, description="vae: length of the latent vector")
    mask_features: tuple[int, ...] = Field(
        (16, 32, 32), min_length=1, description="vae: channels after each halving of the size"
    )
    mask_divergence: float = Field(4.0, ge=0, description="vae: weight of the divergence in nats")
    generator_rate: float = Field(1e-4, gt=0, description="Adam learning rate of the generator")
    critic_rate: float = Field(4e-4, gt=0, description="Adam learning rate of the critic")
    mask_rate: float = Field(1e-3, gt=0, description="vae: Adam learning rate")
    betas: tuple[float, float] = Field((0.0, 0.999), description="Adam's moments, but the vae's")


class SPADE(nn.Module):
    """Paints label maps, and samples them.

    Raises:
        InputError: ``image_size`` does not fit the dimensions or the number of resolutions.
    """

    Config = SPADEConfig
    input_slices = 1
    divisor = 1
    training_only = ("critic", "encoder", "mask_encoder")

    def __init__(self, config: SPADEConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.channels, self.image_size = config.channels, config.image_size
        self.conditions = config.conditions
        _require_size(config)
        shared = (dims, config.labels, config.image_size)
        self.generator = SpadeGenerator(
            dims, config.channels, config.labels, config.image_size, config.features,
            config.latent, config.conditions, config.modulation,
        )  # fmt: skip
        seen = config.channels + config.labels + config.conditions
        self.critic = MultiScaleCritic(dims, seen, config.critic_features, config.critic_scales)
        self.encoder = StyleEncoder(dims, config.channels, config.critic_features, config.latent)
        moves = DiffAugment(("translation", "cutout"))
        self.augment = moves if config.augment == "diffaugment" else nn.Identity()
        self.masks: LabelBank | LabelDecoder | None = None
        self.mask_encoder: LabelEncoder | None = None
        if config.mask_sampler == "deform":
            each = -(-config.bank_size // max(1, config.conditions))
            self.masks = LabelBank(
                config.labels, config.image_size, each, config.conditions, config.control_points,
                config.deformation, config.affine, config.mirror_axes,
            )  # fmt: skip
        elif config.mask_sampler == "vae":
            sizes = (config.mask_features, config.mask_latent, config.conditions)
            self.masks = LabelDecoder(*shared, *sizes)
            self.mask_encoder = LabelEncoder(*shared, *sizes)
        self.latent_shape = (config.latent + (self.masks.latent if self.masks else 0),)

    def optimizers(self) -> dict[str, Optimizer]:
        """Critic, generator (with the style encoder) and, of the autoencoder, masks."""
        config = self.config
        drawing = [*self.generator.parameters(), *self.encoder.parameters()]
        found: dict[str, Optimizer] = {
            "critic": Adam(self.critic.parameters(), lr=config.critic_rate, betas=config.betas),
            "generator": Adam(drawing, lr=config.generator_rate, betas=config.betas),
        }
        if self.mask_encoder and self.masks:
            weights = [*self.mask_encoder.parameters(), *self.masks.parameters()]
            found["masks"] = Adam(weights, lr=config.mask_rate)
        return found

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The critic, then the generator against it, then the autoencoder of the masks."""
        real, number = batch["image"], self._condition(self._given(batch), batch["image"])
        if "labels" not in batch:
            msg = "spade learns from images with label maps, and these have none"
            raise InputError(msg, "Use data.kind annotated or annotated_brain.")
        labels, condition = self._known(batch["labels"]), self._one_hot(number)
        if isinstance(self.masks, LabelBank):
            self.masks.fill(batch["labels"], number)
        own = -(-len(real) // 2)  # drawn in the style of their own image
        mean, logvar = self.encoder(real[:own])
        style = mean + torch.exp(logvar / 2) * torch.randn_like(mean)
        random = torch.randn(len(real) - own, self.config.latent, device=real.device)
        fake = self.generator(labels, torch.cat([style, random]), condition)

        judged = self._judge(real, fake.detach(), labels, condition)
        losses = [critic_loss(true, false) for (true, _), (false, _) in judged]
        true, false = (torch.cat([s[i][0].flatten() for s in judged]) for i in (0, 1))
        yield "critic", torch.stack(losses).mean(), critic_parts(true, false)

        with layers.frozen(self.critic):
            judged = self._judge(real, fake, labels, condition)
        scores = torch.stack([generator_loss(false, true) for (true, _), (false, _) in judged])
        distances = [feature_matching(true, false) for (_, true), (_, false) in judged]
        matching = torch.stack(distances).mean()
        divergence = kl_to_standard_normal(mean, logvar)
        loss = scores.mean() + self.config.feature_matching * matching
        loss = loss + self.config.divergence * divergence
        parts = {
            "fake_score": -scores.mean().detach(),
            "feature_matching": matching.detach(),
            "divergence": divergence.detach(),
        }
        yield "generator", loss, parts

        if self.mask_encoder and isinstance(self.masks, LabelDecoder):
            # The evidence bound: cross-entropy of a whole map and divergence, both in nats.
            mean, logvar = self.mask_encoder(labels, condition)
            code = mean + torch.exp(logvar / 2) * torch.randn_like(mean)
            logits, target = self.masks(code, condition), batch["labels"][:, 0]
            error = F.cross_entropy(logits, target, reduction="sum") / len(target)
            divergence = kl_to_standard_normal(mean, logvar)
            parts = {"reconstruction": error.detach(), "divergence": divergence.detach()}
            yield "masks", error + self.config.mask_divergence * divergence, parts

    def _judge(
        self, real: Tensor, fake: Tensor, labels: Tensor, condition: Tensor
    ) -> list[tuple[Judgement, Judgement]]:
        """Logits and features of real and fake images, for each scale of the critic."""
        # One draw for all, so that images and labels still lie on each other.
        together = self.augment(torch.cat([real, fake, labels], dim=1))
        sizes = [self.channels, self.channels, self.config.labels]
        real, fake, labels = together.split(sizes, dim=1)
        planes = condition.view(*condition.shape, *[1] * self.spatial_dims)
        known = torch.cat([labels, planes.expand(-1, -1, *labels.shape[2:])], dim=1)
        pairs = torch.cat([torch.cat([image, known], dim=1) for image in (real, fake)])
        halves = []
        for logits, features in self.critic(pairs):
            (true, false), found = logits.chunk(2), [part.chunk(2) for part in features]
            halves.append(((true, [f[0] for f in found]), (false, [f[1] for f in found])))
        return halves

    def fill_bank(self, labels: Tensor, condition: Tensor | None = None) -> None:
        """Keep training label maps ``(B, 1, *image_size)`` for the mask sampler ``deform``."""
        if isinstance(self.masks, LabelBank):
            self.masks.fill(labels, self._condition(condition, labels))

    def generate(
        self, latent: Tensor, condition: Tensor | None = None, *, truncation: float = 1.0
    ) -> dict[str, Tensor]:
        """Label maps from the mask sampler, and images of them.

        Args:
            latent: ``(B, *latent_shape)``, standard normal; the image's part stands first.
            condition: ``(B,)`` numbers of conditions, if the network knows any.
            truncation: Factor on the latents; smaller values give more typical images and maps.

        Raises:
            InputError: There is no mask sampler, or a condition is missing or unknown.
        """
        if not self.masks:
            msg = "this network has no mask sampler, so it cannot make label maps from noise"
            raise InputError(msg, "Give label maps to paint, or train with mask_sampler: deform.")
        number = self._condition(condition, latent)
        of_image, of_masks = latent.float().mul(truncation).tensor_split([self.config.latent], 1)
        if isinstance(self.masks, LabelBank):
            labels = self.masks(of_masks, number)
        else:
            labels = self.masks(of_masks, self._one_hot(number)).argmax(1, keepdim=True)
        return {"image": self.paint(labels, of_image, condition), "labels": labels}

    def paint(self, labels: Tensor, latent: Tensor, condition: Tensor | None = None) -> Tensor:
        """Images ``(B, C, *image_size)`` in -1..1 of given label maps.

        Args:
            labels: ``(B, 1, *image_size)`` label values.
            latent: ``(B, n)``; its first ``config.latent`` entries are the style.
            condition: As for :meth:`generate`.

        Raises:
            InputError: Label maps of another size or with unknown values.
        """
        expected = (len(latent), 1, *self.image_size)
        if tuple(labels.shape) != expected:
            raise InputError(f"label maps must be {expected}, got {tuple(labels.shape)}")
        style = latent[:, : self.config.latent].float()
        number = self._condition(condition, latent)
        image: Tensor = self.generator(self._known(labels), style, self._one_hot(number))
        return image

    def _known(self, labels: Tensor) -> Tensor:
        """One-hot labels, all of which the networks have a channel for."""
        low, high = (int(value) for value in labels.aminmax())
        if low < 0 or high >= self.config.labels:
            raise InputError(
                f"labels must be 0 to {self.config.labels - 1}, got {low} to {high}",
                "config.labels is the number of label values, background included.",
            )
        return one_hot(labels, self.config.labels)

    def _given(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The conditions of training images, if the network learns any."""
        return batch.get("condition") if self.conditions else None

    def _condition(self, condition: Tensor | None, like: Tensor) -> Tensor:
        """Checked numbers ``(B,)`` of conditions; all 0 without conditions."""
        if not self.conditions:
            if condition is not None:
                raise InputError("this network has no conditions to choose from, but one was given")
            return torch.zeros(len(like), dtype=torch.long, device=like.device)
        if condition is None:
            raise InputError(f"one of {self.conditions} conditions must be given, got none")
        if int(condition.min()) < 0 or int(condition.max()) >= self.conditions:
            found = sorted({*condition.tolist()})
            raise InputError(f"conditions must be 0 to {self.conditions - 1}, got {found}")
        return condition

    def _one_hot(self, condition: Tensor) -> Tensor:
        """``(B, conditions)``; without conditions of width 0."""
        if not self.conditions:
            return torch.zeros(len(condition), 0, device=condition.device)
        return layers.one_hot(condition, self.conditions)


def _require_size(config: SPADEConfig) -> None:
    """Refuse sizes that the networks cannot halve as often as they have to."""
    if len(config.image_size) != config.spatial_dims:
        msg = f"image_size must have {config.spatial_dims} numbers, got {config.image_size}"
        raise InputError(msg)
    if not set(config.mirror_axes) <= set(range(config.spatial_dims)):
        last = config.spatial_dims - 1
        raise InputError(f"mirror_axes must be among 0 to {last}, got {config.mirror_axes}")
    needed = 2 ** (config.critic_scales + len(config.critic_features) - 1)
    if min(config.image_size) < needed:
        raise InputError(
            f"the critics halve images until edges of {needed} are gone, got {config.image_size}",
            "Give fewer critic_features or critic_scales, or a larger image_size.",
        )
    halvings = len(config.features) - 1
    if config.mask_sampler == "vae":
        halvings = max(halvings, len(config.mask_features))
    require_multiples(config.image_size, 2**halvings)
