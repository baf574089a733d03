"""VAE: a variational autoencoder that has only seen healthy images cannot draw a lesion.

Kingma and Welling, "Auto-Encoding Variational Bayes" (2014): the evidence lower bound with a
diagonal Gaussian posterior and a standard normal prior,
``1/2 |x - x'|^2 + beta * KL(q(z|x) || N(0, I))``, minimised with the reparametrisation
``z = mean + exp(logvar / 2) * noise``. Used for brain lesions as in Baur et al., "Autoencoders for
Unsupervised Anomaly Segmentation in Brain MR Images" (Med Image Anal 69:101952, 2021): strided
convolutions, and a latent space that is one vector (``dense``) or a small image (``spatial``).

Two additions have names of their own:

- ``vae_restoration``: ``restored`` is not decoded but reached from the image by gradient descent,
  ``-ELBO(y) + smoothness * TV(y - x)`` (You et al. 2019; see ``_restoration_by_gradient.py``);
- ``cevae``: Zimmerer et al., "Context-encoding Variational Autoencoder for Unsupervised Anomaly
  Detection" (2018). The same networks also have to fill in boxes that were erased from the image,
  decoded from the mean: ``(1 - w) * VAE(x) + w * 1/2 |x - Dec(mean(erased x))|^2``. Its ``score``
  is ``|x - x'| * |dELBO(x)/dx|``, high where the copy is wrong and a change of the voxel would make
  the image more probable; in squared units of the image, from 0. (The authors smooth the gradient
  over noisy copies of the image; here it is that of the posterior's mean.)

``restored`` is decoded from the posterior's mean, never from a sample, and has the image's unit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor
from torch.optim import Adam, Optimizer

from medgen.losses import kl_to_standard_normal, squared_error
from medgen.methods._coding import Coded, VariationalConfig
from medgen.methods._erasing import erase_boxes
from medgen.networks.autoencoding import LOGVAR_LIMITS


class VAEConfig(VariationalConfig):
    """Settings of the variational autoencoder."""

    context_weight: float = Field(
        0.0, ge=0, le=1, description="share of the loss that is filling in erased boxes"
    )
    gradient_score: bool = Field(
        False, description="also predict the residual times the gradient of the bound as score"
    )


class VAE(Coded):
    """Reconstructs images through a Gaussian latent space.

    Raises:
        InputError: A dense latent space without a fitting ``image_size``.
    """

    Config = VAEConfig
    config: VAEConfig

    def __init__(self, config: VAEConfig) -> None:
        super().__init__(config, numbers=2 * config.latent_channels)

    def optimizers(self) -> dict[str, Optimizer]:
        """One optimiser for encoder and decoder."""
        return {"autoencoder": Adam(self.parameters(), lr=self.config.learning_rate)}

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log of the variance, each ``(B, latent_channels[, *spatial / factor])``."""
        mean, logvar = self.to_posterior(self.encoder(image)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_LIMITS)

    def latent(self, image: Tensor) -> Tensor:
        """Means of the posterior of images of any size, flattened ``(B, K)``."""
        return self.encode(self.fitted(image)[0])[0].flatten(1)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """The negative evidence lower bound of the healthy images, and filling in if asked for."""
        image, _ = self.fitted(batch["healthy"])
        mean, logvar = self.encode(image)
        decoded = self.decode(mean + torch.exp(logvar / 2) * torch.randn_like(mean))
        error, divergence = self._terms(image, decoded, mean, logvar)
        loss = error + self.config.beta * divergence
        parts = {"reconstruction": error.detach(), "divergence": divergence.detach()}
        if weight := self.config.context_weight:
            filled = self.decode(self.encode(erase_boxes(image))[0])
            context = squared_error(filled, image, reduction=self.config.reduction) / 2
            loss = (1 - weight) * loss + weight * context
            parts["context"] = context.detach()
        yield "autoencoder", loss, parts

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit and, if asked for, ``score``."""
        fitted, inside = self.fitted(image)
        decoded = self.decode(self.encode(fitted)[0])
        outputs = {"restored": decoded}
        if self.config.restoration_steps:
            outputs["restored"] = self.restore(fitted, self._bound)
        if self.config.gradient_score:
            surprise = (fitted - decoded).abs() * self.slope(fitted, self._bound).abs()
            outputs["score"] = surprise.mean(1, keepdim=True)
        return {name: output[inside] for name, output in outputs.items()}

    def _bound(self, image: Tensor) -> Tensor:
        """The negative bound, for decoding from the mean."""
        mean, logvar = self.encode(image)
        error, divergence = self._terms(image, self.decode(mean), mean, logvar)
        return error + self.config.beta * divergence

    def _terms(
        self, image: Tensor, decoded: Tensor, mean: Tensor, logvar: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Half the squared error, and the divergence from the prior."""
        reduction = self.config.reduction
        error = squared_error(decoded, image, reduction=reduction) / 2
        return error, kl_to_standard_normal(mean, logvar, reduction=reduction)
