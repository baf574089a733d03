"""Which code would a model make a given image from? Latent inversion by gradient descent.

The code is moved until its image is near the given one: half the mean squared difference at three
resolutions, plus the squared distance in the space of a feature extractor if there is one (Abdal
et al., "Image2StyleGAN", 2019, with another feature network). The search starts at the mean style
or at z = 0, the most probable latent, or where one of a few fixed drawn images is nearer; the prior
of z pulls weakly back. Nothing else is random: the same image gives the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.tasks.latents import Code, draw
from medgen.tasks.sampling import has_styles

if TYPE_CHECKING:
    from torch import Tensor

    from medgen.features import FeatureExtractor

STEPS = 300
RATE = 0.05
FEATURE_WEIGHT = 0.1
PRIOR_WEIGHT = 1e-4
SCALES = (1, 2, 4)
CANDIDATES = 32  # drawn images to start from


@dataclass(frozen=True, eq=False)
class Inverted:
    """The code found for one image.

    Attributes:
        code: What the model makes the nearest image from.
        residual: Root of the mean squared difference, in steps of 8-bit grey (0..255).
        feature_distance: Between given and made image; None without an extractor.
    """

    code: Code
    residual: float
    feature_distance: float | None


def invert(
    method: Any,
    images: NDArray[np.float32],
    conditions: Sequence[int | None],
    *,
    extract: FeatureExtractor | None = None,
    steps: int = STEPS,
) -> list[Inverted]:
    """Find the codes of images.

    Args:
        method: A model that makes images, in evaluation mode on its device.
        images: ``(N, C, *image_size)`` in -1..1.
        conditions: Number of the condition of each; None for a model without conditions.
        extract: Measures features; without it, and for volumes, only grey values count.
        steps: Of gradient descent.

    Raises:
        InputError: The search left the numbers that can be computed with.
    """
    import torch
    from torch.nn import functional as F

    weights = next(method.parameters())
    target = torch.from_numpy(images).to(weights.device)
    condition = _tensor(conditions, weights.device)
    style = has_styles(method)
    values = _start(method, target, condition).requires_grad_(True)
    optimizer = torch.optim.Adam([values], lr=RATE)
    measure = _measure(extract, weights.device) if images.ndim == 4 else None
    wanted = None if measure is None else measure(target).detach()
    for step in range(steps):
        # Large steps first, then ever smaller ones, so that the end is settled.
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * step / steps))
        made = _image(method, values, condition)
        loss = _pixels(made, target) * len(images)
        if measure is not None and wanted is not None:
            loss = loss + FEATURE_WEIGHT * (measure(made) - wanted).square().mean(1).sum()
        if not style:
            loss = loss + PRIOR_WEIGHT * values.square().sum()
        # Only the codes are moved: no network gathers gradients.
        (values.grad,) = torch.autograd.grad(loss, values)
        optimizer.step()
    with torch.inference_mode():
        made = _image(method, values, condition)
        error = F.mse_loss(made, target, reduction="none").flatten(1).mean(1).sqrt() * 127.5
        apart = None
        if measure is not None and wanted is not None:
            apart = (measure(made) - wanted).square().sum(1).sqrt().cpu().numpy()
        found = values.detach().cpu().numpy()
    if not np.isfinite(found).all():
        raise InputError("no code could be found for the image: the search diverged")
    return [
        Inverted(
            Code(found[n], "w" if style else "z", None if style else conditions[n]),
            float(error[n]),
            None if apart is None else float(apart[n]),
        )
        for n in range(len(images))
    ]


def _tensor(conditions: Sequence[int | None], device: Any) -> Tensor | None:
    import torch

    if conditions[0] is None:
        return None
    return torch.tensor([int(number or 0) for number in conditions], device=device)


def _start(method: Any, target: Tensor, condition: Tensor | None) -> Tensor:
    """Where the search for each image begins ``(N, ...)``: at the mean, or at a drawn image."""
    import torch

    drawn = np.stack([draw(method.latent_shape, 0, n) for n in range(CANDIDATES)])
    latents = torch.from_numpy(drawn).to(target.device)
    best, error = _middle(method, target, condition), torch.full((len(target),), torch.inf)
    with torch.no_grad():
        for values in (None, *latents):
            if values is None:
                tried = best
            elif has_styles(method):
                tried = method.map(values.expand(len(target), *values.shape), condition)
            else:
                tried = values.expand(len(target), *values.shape)
            found = (_image(method, tried, condition) - target).square().flatten(1).mean(1).cpu()
            nearer = (found < error).to(target.device)
            best = torch.where(nearer.reshape(-1, *[1] * (best.ndim - 1)), tried, best)
            error = torch.minimum(found, error)
    return best.clone()


def _middle(method: Any, target: Tensor, condition: Tensor | None) -> Tensor:
    """The mean style, or the most probable latent, for each image."""
    import torch

    count = len(target)
    if not has_styles(method):
        return torch.zeros(count, *method.latent_shape, device=target.device)
    means: Tensor = method.w_mean
    return means.mean(0).expand(count, -1) if condition is None else means[condition]


def _image(method: Any, values: Tensor, condition: Tensor | None) -> Tensor:
    """The image, with gradients."""
    found: Tensor = (
        method.synthesize(values)
        if has_styles(method)
        else method.generate(values, condition)["image"]
    )
    return found


def _pixels(made: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared difference, averaged over resolutions."""
    from torch.nn import functional as F

    pool = F.avg_pool2d if made.ndim == 4 else F.avg_pool3d
    scales = [scale for scale in SCALES if min(made.shape[2:]) >= scale]
    errors = [F.mse_loss(pool(made, scale), pool(target, scale)) for scale in scales]
    total: Tensor = sum(errors[1:], errors[0])
    return total / (2 * len(errors))


def _measure(extract: FeatureExtractor | None, device: Any) -> Callable[[Tensor], Tensor] | None:
    """Features ``(N, D)`` of pictures, with gradients."""
    from torch.nn import functional as F

    if extract is None:
        return None
    network, size = extract.network, (extract.image_size, extract.image_size)
    owner: Any = getattr(network, "__self__", network)
    owner.to(device)

    def measure(image: Tensor) -> Tensor:
        values = image.expand(-1, 3, -1, -1)
        if tuple(values.shape[2:]) != size:
            values = F.interpolate(values, size, mode="bilinear", antialias=True)
        return network(values)

    return measure
