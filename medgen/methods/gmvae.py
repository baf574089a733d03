"""GMVAE: a variational autoencoder whose prior is a mixture of Gaussians that it learns.

Dilokthanakul et al., "Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders"
(2016), for brain lesions as in You et al. (MIDL 2019) and Baur et al. (Med Image Anal 69:101952,
2021). A latent vector z comes from one of K Gaussians, ``z ~ N(mean_c(w), var_c(w))`` with
``w ~ N(0, I)`` and ``c`` uniform; a network gives the Gaussians of w. The negative bound is

``1/2 |x - Dec(z)|^2 + beta * (E_w sum_c p(c|z,w) KL(q(z|x) || p(z|w,c)) + KL(q(w|x) || N(0, I))
+ KL(p(c|z,w) || uniform))``

where ``p(c|z,w)`` follows from Bayes' rule. The last term only counts above ``information`` nats,
or the Gaussians would all become one (the paper's minimum information constraint). With a spatial
latent space every place has a z, a w and a c of its own.

``restored`` is decoded from the mean of q(z|x), or in the variant ``gmvae_restoration`` reached
from the image by gradient descent on the bound of the means (see ``_restoration_by_gradient.py``).
It has the image's unit; nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from medgen.losses import kl_between_normals, squared_error
from medgen.methods._coding import Coded, VariationalConfig
from medgen.networks.autoencoding import LOGVAR_LIMITS

# Standard deviations of the mixture's Gaussians stay between 1/20 and 20.
PRIOR_LOGVAR_LIMITS = (-6.0, 6.0)
HIDDEN = 64


class GMVAEConfig(VariationalConfig):
    """Settings of the Gaussian mixture variational autoencoder."""

    components: int = Field(6, ge=1, description="Gaussians of the mixture")
    mixture_channels: int = Field(
        8, ge=1, description="length of the vector w on which the mixture depends"
    )
    information: float = Field(
        0.5, ge=0, description="nats that the choice of a Gaussian may cost for nothing"
    )


class Posterior(NamedTuple):
    """Means and logs of variances, each ``(B, numbers, P)``, P places (1 if dense)."""

    mean: Tensor
    logvar: Tensor
    mixture_mean: Tensor
    mixture_logvar: Tensor


class GMVAE(Coded):
    """Reconstructs images through a latent space with a learned mixture of Gaussians.

    Raises:
        InputError: A dense latent space without a fitting ``image_size``.
    """

    Config = GMVAEConfig
    config: GMVAEConfig

    def __init__(self, config: GMVAEConfig) -> None:
        super().__init__(config, numbers=2 * (config.latent_channels + config.mixture_channels))
        self.mixture = nn.Sequential(
            nn.Conv1d(config.mixture_channels, HIDDEN, 1),
            nn.Tanh(),
            nn.Conv1d(HIDDEN, 2 * config.components * config.latent_channels, 1),
        )

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for all networks."""
        return {"autoencoder": Adam(self.parameters(), lr=self.config.learning_rate)}

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the variance of z, each ``(B, latent_channels[, *spatial / factor])``."""
        mean, logvar, _, _ = self._moments(image)
        return mean, logvar

    def latent(self, image: Tensor) -> Tensor:
        """Means of z of images of any size, flattened ``(B, K)``."""
        return self.encode(self.fitted(image)[0])[0].flatten(1)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The negative evidence lower bound of the healthy images."""
        image, _ = self.fitted(batch["healthy"])
        loss, parts = self._terms(image, sampled=True)
        yield "autoencoder", loss, {name: part.detach() for name, part in parts.items()}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit."""
        fitted, inside = self.fitted(image)
        if self.config.restoration_steps:
            restored = self.restore(fitted, lambda point: self._terms(point, sampled=False)[0])
        else:
            restored = self.decode(self.encode(fitted)[0])
        return {"restored": restored[inside]}

    def _moments(self, image: Tensor) -> tuple[Tensor, ...]:
        """Mean and logvar of z, then of w, ``(B, numbers[, *grid])``."""
        latent, mixture = self.config.latent_channels, self.config.mixture_channels
        numbers = self.to_posterior(self.encoder(image))
        mean, logvar, w_mean, w_logvar = numbers.split([latent, latent, mixture, mixture], dim=1)
        return mean, logvar.clamp(*LOGVAR_LIMITS), w_mean, w_logvar.clamp(*LOGVAR_LIMITS)

    def _terms(self, image: Tensor, *, sampled: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative bound and its parts, for draws of z and w or for their means."""
        config, moments = self.config, self._moments(image)
        mean, logvar, w_mean, w_logvar = moments
        latent = _draw(mean, logvar) if sampled else mean
        mixture = _draw(w_mean, w_logvar) if sampled else w_mean
        decoded = self.decode(latent)
        error = squared_error(decoded, image, reduction=config.reduction) / 2

        posterior = Posterior(*map(_places, moments))
        parts = self._divergences(posterior, _places(latent), _places(mixture))
        if config.reduction == "mean":
            parts = {name: part / mean[0].numel() for name, part in parts.items()}
        loss = error + config.beta * sum(parts.values(), torch.zeros_like(error))
        return loss, {"reconstruction": error, **parts}

    def _divergences(
        self, posterior: Posterior, latent: Tensor, mixture: Tensor
    ) -> dict[str, Tensor]:
        """The three divergences, added up over places, averaged over the batch."""
        count = self.config.components
        shape = (len(latent), 2, count, latent.shape[1], latent.shape[2])
        prior_mean, prior_logvar = self.mixture(mixture).view(shape).unbind(1)
        prior_logvar = prior_logvar.clamp(*PRIOR_LOGVAR_LIMITS)
        squares = (latent[:, None] - prior_mean).square() / prior_logvar.exp()
        # Constants that all Gaussians have in common cancel.
        log_share = torch.log_softmax(-(squares + prior_logvar).sum(2) / 2, dim=1)  # (B, K, P)
        share = log_share.exp()
        of_each = kl_between_normals(
            posterior.mean[:, None], posterior.logvar[:, None], prior_mean, prior_logvar
        ).sum(2)
        zero = torch.zeros_like(posterior.mixture_mean)
        of_mixture = kl_between_normals(
            posterior.mixture_mean, posterior.mixture_logvar, zero, zero
        )
        choice = (share * (log_share + math.log(count))).sum(1).mean()
        return {
            "divergence": (share * of_each).sum((1, 2)).mean(),
            "mixture": of_mixture.sum((1, 2)).mean(),
            "choice": choice.clamp(min=self.config.information) * latent.shape[2],
        }


def _places(numbers: Tensor) -> Tensor:
    """``(B, numbers[, *grid])`` as ``(B, numbers, P)``."""
    return numbers.flatten(2) if numbers.ndim > 2 else numbers[..., None]


def _draw(mean: Tensor, logvar: Tensor) -> Tensor:
    return mean + torch.exp(logvar / 2) * torch.randn_like(mean)
