"""Losses as plain functions of tensors. Each returns one number unless it says otherwise.

Adversarial losses take the critic's raw outputs ``(B,)`` for real and for made images, before any
sigmoid, and compute in float32 whatever the precision of the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


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


def kl_between_normals(
    mean: Tensor, logvar: Tensor, other_mean: Tensor, other_logvar: Tensor
) -> Tensor:
    """Kullback-Leibler divergence of one-dimensional Gaussians from others, one for each number.

    ``1/2 (log s2^2 - log s1^2 + (s1^2 + (m1 - m2)^2) / s2^2 - 1)`` in nats; shapes broadcast.

    Args:
        mean: Means of the first.
        logvar: Logarithms of their variances.
        other_mean: Means of those that they diverge from.
        other_logvar: Logarithms of their variances.
    """
    squares = (mean - other_mean).square() + logvar.exp()
    return (other_logvar - logvar + squares * (-other_logvar).exp() - 1) / 2


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


def laplace_spread(error: Tensor, log_spread: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``|e| / b + log b`` inside the mask; the best b is the mean size of the errors.

    That is the negative log-likelihood of a Laplace distribution of scale b, but for log 2 (Kendall
    and Gal, "What Uncertainties Do We Need in Bayesian Deep Learning?", 2017, for L1). No gradient
    reaches the error, so that voxels with a large b are not given up.

    Args:
        error: Prediction minus truth ``(B, C, *spatial)``.
        log_spread: Logarithm of b, same shape.
        mask: 0 or 1, ``(B, 1, *spatial)``.
    """
    return mean_inside(error.detach().abs() * (-log_spread).exp() + log_spread, mask)


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


def feature_distance(made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of a network's features, relative to their size, over its layers.

    A perceptual loss (Johnson et al. 2016) whose network may be the critic (feature matching; Wang
    et al., pix2pixHD, 2018). Divided by the mean size of the real image's features, layers count
    alike whatever their scale.

    Args:
        made: Features of made images, one tensor ``(B, C, *spatial)`` for each layer.
        real: Features of the images they should be; no gradient reaches them.
    """
    distances = [
        (a.float() - b.detach().float()).abs().mean()
        / b.detach().float().abs().mean().clamp(min=1e-6)
        for a, b in zip(made, real, strict=True)
    ]
    return torch.stack(distances).mean()


# ---- Adversarial losses: what the critic minimises, and what the generator minimises. ----


def minmax_value(real: Tensor, fake: Tensor) -> Tensor:
    """``E[log D(x)] + E[log(1 - D(G(z)))]`` with ``D = sigmoid(logit)`` (Goodfellow et al. 2014).

    The critic raises it up to 0, the generator lowers it. Where real and made images cannot be
    told apart it is ``-log 4``, about -1.386.
    """
    return F.logsigmoid(real.float()).mean() + F.logsigmoid(-fake.float()).mean()


def cross_entropy_critic(real: Tensor, fake: Tensor) -> Tensor:
    """The negative of :func:`minmax_value` (Goodfellow et al. 2014, equation 1)."""
    return -minmax_value(real, fake)


def saturating_generator(fake: Tensor, real: Tensor) -> Tensor:
    """``E[log(1 - D(G(z)))]``, the min-max game; flat where the critic is sure (2014, eq. 1)."""
    return F.logsigmoid(-fake.float()).mean()


def non_saturating_generator(fake: Tensor, real: Tensor) -> Tensor:
    """``-E[log D(G(z))]``, with strong gradients where the critic is sure (2014, section 3)."""
    return -F.logsigmoid(fake.float()).mean()


def least_squares_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``1/2 E[(D(x) - 1)^2] + 1/2 E[D(G(z))^2]`` (Mao et al. 2017, equation 9)."""
    return ((real.float() - 1).square().mean() + fake.float().square().mean()) / 2


def least_squares_generator(fake: Tensor, real: Tensor) -> Tensor:
    """``1/2 E[(D(G(z)) - 1)^2]`` (Mao et al. 2017, equation 9)."""
    return (fake.float() - 1).square().mean() / 2


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``E[D(G(z))] - E[D(x)]`` (Arjovsky et al. 2017).

    Its negative estimates the earth mover's distance times the critic's Lipschitz constant, which
    clipped weights or :func:`wgan_gp` keep bounded.
    """
    return fake.float().mean() - real.float().mean()


def wasserstein_generator(fake: Tensor, real: Tensor) -> Tensor:
    """``-E[D(G(z))]`` (Arjovsky et al. 2017); the hinge loss's generator has the same one."""
    return -fake.float().mean()


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """``E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]`` (Lim and Ye 2017; Miyato et al. 2018)."""
    return F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()


def relativistic_average_critic(real: Tensor, fake: Tensor) -> Tensor:
    """Real images are more real than made ones are on average (Jolicoeur-Martineau 2019, RaSGAN).

    ``-E[log s(D(x) - E D(G(z)))] - E[log(1 - s(D(G(z)) - E D(x)))]``; only differences count.
    """
    real, fake = real.float(), fake.float()
    return -minmax_value(real - fake.mean(), fake - real.mean())


def relativistic_average_generator(fake: Tensor, real: Tensor) -> Tensor:
    """The critic's loss with the roles exchanged, on both sides (Jolicoeur-Martineau 2019)."""
    return relativistic_average_critic(fake, real)


AdversarialLoss = Callable[[Tensor, Tensor], Tensor]
# Name: the critic's loss of (real, fake), and the generator's loss of (fake, real).
ADVERSARIAL: dict[str, tuple[AdversarialLoss, AdversarialLoss]] = {
    "non_saturating": (cross_entropy_critic, non_saturating_generator),
    "saturating": (cross_entropy_critic, saturating_generator),
    "least_squares": (least_squares_critic, least_squares_generator),
    "wasserstein": (wasserstein_critic, wasserstein_generator),
    "hinge": (hinge_critic, wasserstein_generator),
    "relativistic_average": (relativistic_average_critic, relativistic_average_generator),
}
# The output at which a critic calls an image real. None: the loss only knows differences.
BOUNDARY: dict[str, float | None] = {
    "non_saturating": 0.0,
    "saturating": 0.0,
    "least_squares": 0.5,
    "wasserstein": None,
    "hinge": 0.0,
    "relativistic_average": None,
}


def separation(real: Tensor, fake: Tensor, boundary: float | None) -> Tensor | float:
    """The output that separates real from made images: ``boundary``, :data:`BOUNDARY` of the loss.

    None takes the middle between the two means: to a loss of differences, outputs that are all
    larger by some number are the same outputs.
    """
    return (real.float().mean() + fake.float().mean()) / 2 if boundary is None else boundary


@torch.no_grad()
def critic_parts(real: Tensor, fake: Tensor, *, boundary: float | None = 0.0) -> dict[str, Tensor]:
    """What to log of a critic's step.

    Args:
        real: Outputs for real images ``(B,)``.
        fake: Outputs for made images ``(B,)``.
        boundary: See :func:`separation`.

    Returns:
        ``real_score`` and ``fake_score``: means; ``accuracy``: share on the right side, 0..1.
    """
    real, fake = real.float(), fake.float()
    middle = separation(real, fake, boundary)
    right = ((real > middle).float().mean() + (fake < middle).float().mean()) / 2
    return {"real_score": real.mean(), "fake_score": fake.mean(), "accuracy": right}


def _slopes(critic: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Norms of the critic's gradients ``(B,)``; differentiable, and in float32 under autocast."""
    points = points.detach().float().requires_grad_()
    with torch.autocast(points.device.type, enabled=False), torch.enable_grad():
        total = critic(points).sum()
        (gradient,) = torch.autograd.grad(total, points, create_graph=True)
    # The root has no derivative at 0, which dead units reach.
    return (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()


def wgan_gp(
    critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, *, weight: float = 10.0
) -> Tensor:
    """Gradient penalty ``weight * E[(|grad D(x^)| - 1)^2]`` (Gulrajani et al. 2017).

    Args:
        critic: From images to outputs ``(B,)``; no output may depend on another image, so no
            batch normalisation.
        real: Images ``(B, C, *spatial)``.
        fake: As many images. The points ``x^`` lie uniformly between the pairs.
        weight: Lambda of the paper.
    """
    share = torch.rand(len(real), *(1,) * (real.ndim - 1), device=real.device)
    return (
        weight
        * (_slopes(critic, torch.lerp(fake.float(), real.float(), share)) - 1).square().mean()
    )


def dragan(critic: Callable[[Tensor], Tensor], real: Tensor, *, weight: float = 10.0) -> Tensor:
    """Gradient penalty ``weight * E[(|grad D(x + d)| - 1)^2]`` near real images (Kodali 2017).

    The noise d is half the batch's standard deviation times a uniform number for each voxel. The
    authors' code also draws how much of it each image gets; here each gets all.
    """
    noise = 0.5 * real.float().std() * torch.rand_like(real, dtype=torch.float32)
    return weight * (_slopes(critic, real.float() + noise) - 1).square().mean()


def r1(critic: Callable[[Tensor], Tensor], real: Tensor, *, gamma: float = 10.0) -> Tensor:
    """``gamma / 2 * E[|grad D(x)|^2]`` at real images (Mescheder et al. 2018)."""
    return gamma / 2 * _slopes(critic, real).square().mean()


# ---- How alike two images look. ----

# The window of Wang et al. 2004: Gaussian, of this many voxels and this deviation.
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def ssim_maps(a: Tensor, b: Tensor, *, data_range: float) -> tuple[Tensor, Tensor]:
    """Structural similarity at every voxel, and its contrast-structure factor alone.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004),
    in 2-D and 3-D. Differentiable.

    Args:
        a: Images ``(B, C, *spatial)``.
        b: Their partners.
        data_range: Largest minus smallest possible value.

    Returns:
        Two maps ``(B, C, *spatial - 10)``, at most 1: only where the whole window fits.
    """
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = _window_mean(a * a) - mean_a**2
    variance_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    contrast = (2 * covariance + c2) / (variance_a + variance_b + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * contrast, contrast


def ssim_inside(a: Tensor, b: Tensor, mask: Tensor, *, data_range: float) -> Tensor:
    """Mean SSIM at the voxels of a mask ``(B, 1, *spatial)``; see :func:`ssim_maps`.

    Images are continued by their edge voxels, so that the window fits everywhere.
    """
    margin = [SSIM_WINDOW // 2] * 2 * (a.ndim - 2)
    # A variance is a small difference of large squares: autocast would leave noise of it.
    with torch.autocast(a.device.type, enabled=False):
        a, b = (F.pad(image.float(), margin, mode="replicate") for image in (a, b))
        return mean_inside(ssim_maps(a, b, data_range=data_range)[0], mask)


def _window_mean(image: Tensor) -> Tensor:
    """Gaussian mean along every axis, only where the window fits."""
    offsets = torch.arange(SSIM_WINDOW, device=image.device, dtype=image.dtype) - SSIM_WINDOW // 2
    window = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = window / window.sum()
    dims, channels = image.ndim - 2, image.shape[1]
    convolve = F.conv2d if dims == 2 else F.conv3d
    for axis in range(dims):
        shape = [1, 1] + [SSIM_WINDOW if axis == other else 1 for other in range(dims)]
        kernel = window.reshape(shape).expand(channels, *[-1] * (dims + 1))
        image = convolve(image, kernel, groups=channels)
    return image


def gram(features: Tensor) -> Tensor:
    """Correlations between the channels of features ``(B, C, *spatial)``, ``(B, C, C)``.

    Divided by the number of values of one image, as in Johnson et al. (2016). Where something is
    does not count, only what occurs together.
    """
    with torch.autocast(features.device.type, enabled=False):
        flat = features.float().flatten(2)
        return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def style_distance(made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Squared distance of the Gram matrices, relative to their size, over a network's layers.

    Gatys et al., "Image Style Transfer Using Convolutional Neural Networks" (2016), where layers
    have weights; divided by the squared size of the real image's matrix they count alike.

    Args:
        made: Features of made images, one tensor ``(B, C, *spatial)`` for each layer.
        real: Features of the images they should be; no gradient reaches them.
    """
    distances = []
    for a, b in zip(made, real, strict=True):
        wanted = gram(b.detach())
        size = wanted.square().sum((1, 2)).clamp(min=1e-12)
        distances.append(((gram(a) - wanted).square().sum((1, 2)) / size).mean())
    return torch.stack(distances).mean()
