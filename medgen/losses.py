"""Losses as plain functions of tensors. Each returns one number unless it says otherwise."""

from __future__ import annotations

from typing import Literal

from torch import Tensor


def kl_to_standard_normal(
    mean: Tensor, logvar: Tensor, *, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Kullback-Leibler divergence of a diagonal Gaussian posterior from the standard normal.

    ``KL(q || p) = -1/2 sum(1 + logvar - mean^2 - exp(logvar))`` (Kingma and Welling, 2014,
    appendix B), in nats.

    Args:
        mean: Means of q ``(B, ...)``.
        logvar: Logarithms of the variances (not of the deviations) of q ``(B, ...)``.
        reduction: ``sum`` adds the latent variables, which is the divergence of the paper;
            ``mean`` divides by their number. Both average over the batch.
    """
    terms = -0.5 * (1 + logvar - mean.square() - logvar.exp()).flatten(1)
    return (terms.sum(1) if reduction == "sum" else terms.mean(1)).mean()


def squared_error(
    prediction: Tensor, target: Tensor, *, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Squared difference of ``(B, ...)``, added up or averaged within an image, averaged over B.

    Half its sum is the negative log-likelihood of a Gaussian with unit variance, up to a constant.
    """
    terms = (prediction - target).square().flatten(1)
    return (terms.sum(1) if reduction == "sum" else terms.mean(1)).mean()


def mean_inside(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(B, C, *spatial)`` over all channels of the voxels inside ``(B, 1, *spatial)``.

    An empty mask gives 0.
    """
    return (values * mask).sum() / (mask.sum() * values.shape[1]).clamp(min=1)


def soft_dice(probability: Tensor, target: Tensor, *, smooth: float = 1e-5) -> Tensor:
    """Dice overlap ``2 sum(p t) / (sum(p) + sum(t))`` of a whole batch, 0..1.

    Linear in the denominator (Sudre et al. 2017). Summing over the batch before dividing keeps
    images without any target from dominating.

    Args:
        probability: 0..1, ``(B, 1, *spatial)``.
        target: 0 or 1, same shape.
        smooth: Added above and below, so that two empty masks overlap fully.
    """
    overlap = 2 * (probability * target).sum()
    return (overlap + smooth) / (probability.sum() + target.sum() + smooth)
