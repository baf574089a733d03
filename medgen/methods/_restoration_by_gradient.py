"""Restoration by gradient: from the image downhill to a more probable one that lies near it.

You, Tezcan, Chen and Konukoglu, "Unsupervised Lesion Detection via Image Restoration with a
Normative Prior" (MIDL 2019), and Chen et al., "Unsupervised lesion detection via image restoration
with a normative prior" (Med Image Anal 64:101713, 2020). The restored image y is the most probable
one a posteriori: it minimises

``-ELBO(y) + smoothness * TV(y - x)``

where the evidence lower bound of a (Gaussian mixture) variational autoencoder is the prior and the
total variation says that lesions are few and connected. A fixed number of steps of gradient descent
starts at the image x. The bound is that of the posterior's mean: nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]

# Differences of neighbours that are smaller than this, in the image's unit, count by their square:
# an absolute value has no slope at 0, and steps of a fixed length would jump about it.
ROUNDING = 0.02


def gradient_of(energy: Energy, image: Tensor) -> Tensor:
    """Gradient of a number at an image, also where gradients are switched off.

    Args:
        energy: From ``(B, C, *spatial)`` to one number.
        image: Where to take it.
    """
    with torch.inference_mode(False), torch.enable_grad():
        point = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(energy(point), point)
    return gradient


def restore(image: Tensor, energy: Energy, *, steps: int, rate: float, smoothness: float) -> Tensor:
    """The image after gradient descent.

    Args:
        image: ``(B, C, *spatial)``.
        energy: Of a batch of images, added up over them; no image may depend on another.
        steps: How many.
        rate: Their length: what a gradient is multiplied with.
        smoothness: Weight of the total variation of the change.
    """
    given = image
    for _ in range(steps):
        slope = gradient_of(energy, image)
        if smoothness:
            slope = slope + smoothness * gradient_of(total_variation, image - given)
        image = image - rate * slope
    return image


def total_variation(change: Tensor) -> Tensor:
    """Sum of the differences of neighbours along every axis, rounded off near 0."""
    total = change.new_zeros(())
    for axis in range(2, change.ndim):
        total = total + (change.diff(dim=axis).square() + ROUNDING**2).sqrt().sum()
    return total
