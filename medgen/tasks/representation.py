"""What a classifier may build on: the encoder of a trained network, or of a fresh one like it.

Autoencoders are represented by the features of their encoder's last layer, not by their latent
vector, which the bottleneck has made small for another purpose; U-Nets by their coarsest level.
Features are averaged over places, so that they say what is seen and not where.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medgen.errors import InputError

BATCH = 32
# Batches after which the running statistics of a fresh network have forgotten their first values.
SETTLING = 40


class Representation(nn.Module):
    """Images ``(B, C, *spatial)``, about 0..1, to feature vectors ``(B, K)``.

    Args:
        method: A method with ``represent``, ``features`` or an ``encoder``.

    Raises:
        InputError: The method has none of them.
    """

    def __init__(self, method: Any) -> None:
        super().__init__()
        if not any(hasattr(method, name) for name in ("represent", "features", "encoder")):
            msg = f"{type(method).__name__} has no encoder whose features could be used"
            raise InputError(msg, "Give an autoencoder, a dae, a mae or a selfsup network.")
        self.method = method

    def forward(self, image: Tensor) -> Tensor:
        """Features of whole images."""
        method, found = self.method, Tensor()
        if hasattr(method, "represent"):
            found = method.represent(image)
        elif hasattr(method, "features"):
            signed = (2 * image - 1).expand(-1, method.channels, -1, -1)
            size = (method.view_size, method.view_size)
            if tuple(signed.shape[2:]) != size:
                signed = F.interpolate(signed, size, mode="bilinear", antialias=True)
            found = method.features(signed)
        else:
            found = method.encoder(image)
        return found.flatten(2).mean(2) if found.ndim > 2 else found


def fresh(name: str, config: Mapping[str, Any], images: Tensor, seed: int) -> Representation:
    """The representation of a network with random weights.

    Running statistics of batch normalisation are those of the images, as after training: without
    them random features would be worse than they need be.

    Args:
        name: Of the method.
        config: Its settings.
        images: Of the training side ``(N, C, *spatial)``.
        seed: Of the weights.
    """
    from medgen.methods import build

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method: Any = build(name, config)
        network = Representation(method).train()
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
            with torch.no_grad():
                for _ in range(SETTLING):
                    network(images[torch.randint(len(images), (min(BATCH, len(images)),))])
    return network.eval()


def vectors_of(network: Representation, images: Tensor, device: str = "cpu") -> Tensor:
    """Features ``(N, K)`` float64 on the CPU."""
    network.eval().to(device)
    with torch.inference_mode():
        parts = [network(part.to(device)).double().cpu() for part in images.split(BATCH)]
    return torch.cat(parts)
