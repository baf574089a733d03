"""How far super-resolution should be made to agree with a noisy scan: not, exactly, or damped.

Real scans are made coarse by the stated degradation (Gaussian, full width at half maximum one
coarse voxel), noise is added in per cent of their range, and what interpolation or a model makes of
them is corrected in the three ways of ``medgen super-resolve --consistency``. The noise is not
told to the correction; it is estimated from the coarse scan. PSNR in dB inside tissue, peak 1.

    python benchmarks/data_consistency.py --data DATA --edge 64 \
        --output benchmarks/results/data_consistency.md
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from restoration_truths import arguments, described, models, truths, write

import medgen
from medgen.classical import enlarge, noise_sigma
from medgen.corruption.resolution import Sampling, correct, downsample, noise_damping
from medgen.tasks.finer_grid import finer_grid
from medgen.tasks.super_resolve import BELIEVED
from medgen.volume import Geometry, Volume

FACTORS = ((2, 2, 2), (4, 4, 4), (1, 1, 4))
NOISES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08)
SMALLEST = 16  # voxels along two axes; what `medgen super-resolve` takes
WAYS = ("none", "exact", "noise")

Method = Callable[[Volume], NDArray[np.float32]]


def coarse(truth: Volume, factors: tuple[int, ...], sigma: float, seed: int) -> Volume:
    """What a scanner with larger voxels and noise would have seen."""
    shape = truth.geometry.shape
    samplings = [
        Sampling(size, size // factor) if factor > 1 else None
        for size, factor in zip(shape, factors, strict=True)
    ]
    image = downsample(torch.from_numpy(truth.voxels[0]), samplings)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    # Outer edges agree: the first coarse voxel's centre lies further in.
    affine = truth.affine.copy()
    affine[:3, :3] *= factors
    affine[:3, 3] = truth.geometry.to_world((np.array(factors) - 1) / 2)
    return Volume((image + sigma * noise).numpy()[None], Geometry(image.shape, affine))


def wish(factors: tuple[int, ...]) -> dict[str, float | bool]:
    """The same as options of the command."""
    return {"isotropic": True} if len(set(factors)) > 1 else {"scale": float(factors[0])}


def corrected(
    image: NDArray[np.float32], scan: Volume, factors: tuple[int, ...]
) -> dict[str, NDArray[np.float32]]:
    """An image on the finer grid in the three ways."""
    samplings = finer_grid(scan.geometry, **wish(factors)).samplings()  # type: ignore[arg-type]
    measured = torch.from_numpy(scan.voxels[0])
    residual = measured - downsample(torch.from_numpy(image), samplings)
    damping = noise_damping(residual, samplings, BELIEVED * noise_sigma(scan.voxels[0]))
    return {
        way: correct(torch.from_numpy(image.copy()), residual, samplings, strength).numpy()
        for way, strength in zip(WAYS, (np.inf, 0.0, damping), strict=True)
    }


def main() -> None:
    """Measure, print, and write the table."""
    options = arguments(__doc__.split("\n", maxsplit=1)[0]).parse_args()
    packages = models(options.model)
    rows: dict[tuple[str, tuple[int, ...], float], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for number, truth in enumerate(truths(options.data, options.edge)):
        for factors in FACTORS:
            for sigma in NOISES:
                scan = coarse(truth.volume, factors, sigma, options.seed + number)
                made = {"cubic": enlarge(scan.voxels[0], truth.image.shape)}
                for name, package in packages.items():
                    if sorted(scan.geometry.shape)[-2] < SMALLEST:
                        continue
                    result = medgen.super_resolve(
                        scan, package, consistency="none", device="cpu", force=True,
                        **wish(factors),
                    )  # type: ignore[arg-type]  # fmt: skip
                    made[name] = np.ascontiguousarray(result.output)
                for name, image in made.items():
                    for way, output in corrected(image, scan, factors).items():
                        error = np.square(output - truth.image)[truth.inside].mean()
                        rows[name, factors, sigma][way].append(-10 * np.log10(float(error)))
        print(truth.name, flush=True)
    lines = [
        "# How far super-resolution should agree with a noisy scan", "",
        f"`python benchmarks/data_consistency.py {' '.join(sys.argv[1:])}`".replace(
            str(options.data), "DATA"), "",
        *(__doc__ or "").split("\n\n")[1].split("\n"), "", *described(packages),
        "| image | finer by | noise | scans | none | exact | noise (default) |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (name, factors, sigma), ways in sorted(rows.items()):
        means = [float(np.mean(ways[way])) for way in WAYS]
        best = max(means)
        cells = [f"**{mean:.2f}**" if mean > best - 0.05 else f"{mean:.2f}" for mean in means]
        case = f"{name} | {' x '.join(map(str, factors))} | {sigma:.0%} | {len(ways['none'])}"
        lines.append(f"| {case} | {' | '.join(cells)} |")
    write(options.output, lines)


if __name__ == "__main__":
    main()
