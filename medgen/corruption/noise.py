"""Known noise: Gaussian, Rician (magnitude MR), Poisson (counts) and what a low dose does to CT.

All functions take an image of any shape and return a new one; ``sigma`` is the standard deviation
of the noise in the unit of the image, which for the skewed kinds holds where the value is 1 (as
images are usually scaled: 1 is the brightest tissue).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from medgen.corruption.lesions import gaussian_blur, uniform

# Voxels over which the grain of resampled or zero-filled scans extends: standard deviation.
GRAIN = 0.6


def gaussian(image: Tensor, sigma: float, generator: Generator) -> Tensor:
    """White noise of one standard deviation everywhere."""
    return image + sigma * torch.randn(image.shape, generator=generator)


def rician(image: Tensor, sigma: float, generator: Generator) -> Tensor:
    """The magnitude of a complex signal with Gaussian noise in both channels.

    Dark voxels become brighter (in air the mean is 1.25 sigma), bright ones have nearly Gaussian
    noise. Gudbjartsson and Patz, "The Rician distribution of noisy MRI data", MRM 1995.

    Args:
        image: The noise-free magnitude, not negative.
        sigma: Standard deviation of each channel.
        generator: Source of randomness.
    """
    noise = sigma * torch.randn((2, *image.shape), generator=generator)
    return torch.hypot(image + noise[0], noise[1])


def poisson(image: Tensor, sigma: float, generator: Generator) -> Tensor:
    """Counting noise: the variance grows with the value; ``sigma`` is reached where it is 1.

    Args:
        image: The expected signal, not negative.
        sigma: Standard deviation at value 1, above 0.
        generator: Source of randomness.
    """
    counts = image.clamp(min=0) / sigma**2
    return torch.poisson(counts, generator=generator) * sigma**2


def grainy(image: Tensor, sigma: float, generator: Generator) -> Tensor:
    """Gaussian noise that neighbouring voxels share, as in resampled or zero-filled scans.

    Args:
        image: ``(D, H, W)``.
        sigma: Standard deviation after blurring.
        generator: Source of randomness.
    """
    widths = [GRAIN if size > 1 else 0.0 for size in image.shape]
    noise = gaussian_blur(torch.randn(image.shape, generator=generator), widths)
    return image + noise * (sigma / noise.std(correction=0).clamp_min(1e-6))


# Kinds by name. CT at a low dose needs a projection and is in `low_dose`.
NOISE: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "gaussian": gaussian,
    "rician": rician,
    "poisson": poisson,
    "grainy": grainy,
}


def random_noise(
    image: Tensor, kinds: Mapping[str, tuple[float, float]], generator: Generator
) -> Tensor:
    """Noise of one of the kinds, each as likely, of a level drawn uniformly from its range.

    Args:
        image: ``(D, H, W)``, not negative, 1 its brightest tissue.
        kinds: Names of :data:`NOISE` and the least and largest ``sigma``; empty adds none.
        generator: Source of randomness.
    """
    if not kinds:
        return image.clone()
    names = sorted(kinds)
    name = names[int(torch.randint(len(names), (), generator=generator))]
    low, high = kinds[name]
    sigma = uniform(generator, low, high)
    return NOISE[name](image, sigma, generator) if sigma > 1e-4 else image.clone()
