"""Known noise: Gaussian, Rician (magnitude MR), Poisson (counts) and what a low dose does to CT.

All functions take an image of any shape and return a new one; ``sigma`` is the standard deviation
of the noise in the unit of the image, which for the skewed kinds holds where the value is 1 (as
images are usually scaled: 1 is the brightest tissue).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Generator, Tensor

from medgen.corruption.lesions import gaussian_blur, uniform

# Voxels over which the grain of resampled or zero-filled scans extends: standard deviation.
GRAIN = 0.6
# Attenuation of water at about 70 keV, the mean energy of a usual CT spectrum.
WATER_PER_MM = 0.0193


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


def low_dose(
    image: Tensor, photons: float, spacing_mm: float, generator: Generator, angles: int = 180
) -> Tensor:
    """What few photons do to CT: noise and streaks, most along the densest paths.

    A ray that crosses the attenuation p leaves a Poisson number of ``photons * exp(-p)``; its
    logarithm is reconstructed by filtered back-projection (Whiting et al., "Properties of
    preprocessed sinogram data in x-ray computed tomography", Med Phys 2006, without electronic
    noise). Both steps are linear, so only the error of the logarithms is reconstructed and added:
    the image does not lose resolution. Parallel rays of one energy; slow (about 0.1 s for a slice
    of 128 voxels), hence for evaluation, not for drawing batches.

    Args:
        image: Hounsfield units ``(D, H, W)``, slices of square pixels.
        photons: Per ray before the patient; 1e6 is a usual dose, 1e4 a very low one.
        spacing_mm: Pixel size.
        generator: Source of randomness.
        angles: Projections over 180 degrees.
    """
    from skimage.transform import iradon, radon

    theta = np.linspace(0.0, 180.0, angles, endpoint=False)
    side = max(image.shape[1:])
    before = [(side - size) // 2 for size in image.shape[1:]]
    result = image.clone()
    for number, slice_ in enumerate(image):
        square = np.zeros((side, side))
        inside = tuple(slice(b, b + n) for b, n in zip(before, slice_.shape, strict=True))
        square[inside] = WATER_PER_MM * (1 + slice_.clamp(min=-1000).double().numpy() / 1000)
        paths = torch.from_numpy(radon(square, theta, circle=False) * spacing_mm)
        counts = torch.poisson(photons * torch.exp(-paths), generator=generator).clamp(min=1)
        error = -torch.log(counts / photons) - paths
        noise = iradon(error.numpy(), theta, output_size=side, circle=False)[inside]
        result[number] += torch.from_numpy(noise / spacing_mm / WATER_PER_MM * 1000).to(result)
    return result


# Kinds by name. `low_dose` is no part of them: it needs Hounsfield units.
NOISE: dict[str, Callable[[Tensor, float, Generator], Tensor]] = {
    "gaussian": gaussian,
    "rician": rician,
    "poisson": poisson,
    "grainy": grainy,
}


def random_noise(
    image: Tensor, kinds: Mapping[str, tuple[float, float]], generator: Generator
) -> Tensor:
    """Noise of one of the kinds, each as likely, of a level drawn from its range.

    The level is drawn uniformly on a logarithmic scale, so that faint noise is as common as strong
    noise, or on a linear one if the range begins at 0.

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
    if low > 0:
        sigma = math.exp(uniform(generator, math.log(low), math.log(high)))
    else:
        sigma = uniform(generator, low, high)
    return NOISE[name](image, sigma, generator) if sigma > 1e-4 else image.clone()
