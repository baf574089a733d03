"""VQ-VAE: an image as a small mosaic of codes, and how unusual each code is where it stands.

Van den Oord, Vinyals and Kavukcuoglu, "Neural Discrete Representation Learning" (2017): every
vector z of a coarse grid is replaced by the nearest code e, through which gradients pass
unchanged. Networks minimise ``|x - Dec(e)|^2 + commitment * |z - e|^2``; codes are the running
means of the vectors they stand for. A second network, the prior, learns which code follows those
before it in reading order: the cross entropy ``-log p(code | earlier codes)``, with masked
convolutions.

Anomalies as in Marimont and Tarroni, "Anomaly Detection Through Latent Space Restoration Using
Vector Quantized Variational Autoencoders" (ISBI 2021): healthy images have probable codes.
``score`` is ``-log p`` of the code at each place in nats, from 0, enlarged linearly. Codes above
``surprise`` nats are replaced, and ``restored`` is decoded from what results, in the image's unit.
Where the authors draw new codes from the prior, here its most probable one is taken, a few times
over (a replaced code makes those after it more or less probable), so that nothing is sampled.
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
from medgen.losses import squared_error
from medgen.networks.autoencoding import bottleneck, decoder, encoder
from medgen.networks.codebook import Codebook, CodePrior
from medgen.networks.layers import one_hot
from medgen.networks.sizes import require_multiples


class VQVAEConfig(Config):
    """Settings of the vector-quantised autoencoder and of its prior."""

    spatial_dims: Literal[2, 3] = Field(3, description="2 for slices, 3 for volumes")
    channels: int = Field(1, ge=1, description="image channels (sequences)")
    features: tuple[int, ...] = Field(
        (32, 64, 128), min_length=1, description="channels after each halving of the size"
    )
    latent_channels: int = Field(32, ge=1, description="length of a code's vector")
    codes: int = Field(128, ge=2, description="number of different codes")
    commitment: float = Field(
        0.25, ge=0, description="weight of the distance between vectors and their codes"
    )
    decay: float = Field(0.99, gt=0, lt=1, description="of the running means that codes are")
    prior_width: int = Field(64, ge=1, description="channels of the prior")
    prior_layers: int = Field(4, ge=0, description="residual blocks of the prior")
    surprise: float = Field(
        5.0, gt=0, description="nats above which a code counts as abnormal and is replaced"
    )
    passes: int = Field(4, ge=0, description="how often codes are judged and replaced")
    learning_rate: float = Field(1e-3, gt=0, description="Adam learning rate")


class VQVAE(nn.Module):
    """Reconstructs images from a grid of codes, and says how probable each is."""

    Config = VQVAEConfig
    input_slices = 1

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.spatial_dims = dims = config.spatial_dims
        self.divisor = 2 ** len(config.features)
        width, latent = config.features[-1], config.latent_channels
        self.encoder = encoder(dims, config.channels, config.features)
        self.to_latent, self.from_latent = bottleneck(
            dims, width, latent, latent, None, self.divisor
        )
        self.decoder = decoder(dims, config.features, config.channels)
        self.codebook = Codebook(config.codes, latent, config.decay)
        self.prior = CodePrior(dims, config.codes, config.prior_width, config.prior_layers)

    def optimizers(self) -> dict[str, Optimizer]:
        """One for encoder and decoder, one for the prior."""
        rate = self.config.learning_rate
        networks = (self.encoder, self.to_latent, self.from_latent, self.decoder)
        weights = [weight for network in networks for weight in network.parameters()]
        return {"autoencoder": Adam(weights, rate), "prior": Adam(self.prior.parameters(), rate)}

    def encode(self, image: Tensor) -> Tensor:
        """Vectors ``(B, latent_channels, *spatial / divisor)``, not yet replaced by codes."""
        require_multiples(image.shape[2:], self.divisor)
        latent: Tensor = self.to_latent(self.encoder(image))
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Images ``(B, C, *spatial)`` of the codes nearest to vectors of :meth:`encode`."""
        return self._draw(self.codebook.look_up(self.codebook.nearest(latent)))

    def latent(self, image: Tensor) -> Tensor:
        """Vectors of all places, flattened ``(B, K)``."""
        return self.encode(image).flatten(1)

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, dict[str, Tensor]]]:
        """Copying the healthy images, then the prior of their codes."""
        image = batch["healthy"]
        latent = self.encode(image)
        codes = self.codebook.nearest(latent.detach())
        vectors = self.codebook.look_up(codes)
        # To the decoder the codes, to the encoder the decoder's gradient.
        copy = self._draw(latent + (vectors - latent).detach())
        error = squared_error(copy, image, reduction="mean")
        distance = squared_error(latent, vectors, reduction="mean")
        parts = {"reconstruction": error.detach(), "commitment": distance.detach()}
        yield "autoencoder", error + self.config.commitment * distance, parts
        self.codebook.update(latent.detach(), codes)

        used = one_hot(codes.flatten(), self.config.codes).amax(0).sum()
        yield "prior", F.cross_entropy(self.prior(codes), codes), {"codes": used}

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """``restored`` ``(B, C, *spatial)`` in the image's unit, ``score`` ``(B, 1, *spatial)``."""
        codes = self.codebook.nearest(self.encode(image))
        surprise, likely = self._judge(codes)
        score = surprise[:, None]
        for _ in range(self.config.passes):
            codes = torch.where(surprise > self.config.surprise, likely, codes)
            surprise, likely = self._judge(codes)
        mode = "bilinear" if self.spatial_dims == 2 else "trilinear"
        return {
            "restored": self._draw(self.codebook.look_up(codes)),
            "score": F.interpolate(score, image.shape[2:], mode=mode),
        }

    def _judge(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """``-log p`` of each code in nats, and the most probable one, ``(B, *grid)``."""
        logits = self.prior(codes).float()
        return F.cross_entropy(logits, codes, reduction="none"), logits.argmax(1)

    def _draw(self, vectors: Tensor) -> Tensor:
        """Images of the vectors of codes ``(B, latent_channels, *grid)``."""
        image: Tensor = self.decoder(self.from_latent(vectors))
        return image
