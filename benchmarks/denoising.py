"""Removing known noise from real scans: non-local means, total variation, wavelets, and models.

Noise of three levels, Rician as in magnitude MR images, is added to real scans; its standard
deviation is a part of the scan's range (1st to 99th percentile). The classical methods are told
the true deviation, the models are told nothing. The truth is the scan itself, so removing its own
noise counts as an error; the template has hardly any. Beside it, a CT series as fewer photons would
have shown it.

    python benchmarks/denoising.py --data DATA --model brain-denoise \
        --output benchmarks/results/denoising.md
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from restoration_truths import (
    COLUMNS,
    PERCENTILES,
    Table,
    Truth,
    arguments,
    described,
    models,
    scores,
    truths,
    write,
)
from scipy import ndimage

import medgen
from medgen.classical import CLASSICAL
from medgen.corruption.noise import NOISE, low_dose
from medgen.io import read
from medgen.volume import Volume

LEVELS = (0.03, 0.07, 0.15)
# Low-dose CT: photons of a ray before the patient, and projections over half a turn.
PHOTONS, ANGLES = (1e6, 3e5, 1e5), 720
BODY_HU = -500.0
AIR = 0.05  # a smoothed scan stays below

# From a noisy scan and the true deviation of its noise to the result.
Method = Callable[[Volume, float], NDArray[np.float32]]


def noisy(truth: Truth, kind: str, level: float, seed: int) -> Volume:
    """The scan with noise; its darkest values become 0, as a magnitude cannot be less."""
    image = torch.from_numpy(truth.image).clamp(min=0)
    generator = torch.Generator().manual_seed(seed)
    return truth.volume.with_voxels(NOISE[kind](image, level, generator).numpy()[None])


def ct(data: Path) -> Truth:
    """A CT series, Hounsfield units, its pixels averaged two by two: half of its own noise."""
    scan = read(data / "dicom" / "ct_jpeg2000_series")
    image = scan.voxels[0].astype(np.float32)
    across, down, slices = image.shape
    image = image.reshape(across // 2, 2, down // 2, 2, slices).mean((1, 3))
    affine = scan.affine @ np.diag([2.0, 2.0, 1.0, 1.0])
    affine[:3, 3] = scan.geometry.to_world((0.5, 0.5, 0.0))
    volume = Volume.from_array(image, affine, scan.provenance)
    return Truth("low-dose CT", "ct_jpeg2000_series", volume, image > BODY_HU)


def with_dose(truth: Truth, photons: float, seed: int) -> NDArray[np.float32]:
    """The CT ``(X, Y, Z)`` as so many photons show it."""
    slices = torch.from_numpy(np.ascontiguousarray(truth.image.transpose(2, 0, 1)))
    generator = torch.Generator().manual_seed(seed)
    made = low_dose(slices, photons, truth.volume.geometry.spacing_mm[0], generator, ANGLES)
    return made.numpy().transpose(1, 2, 0)


def low_dose_tables(data: Path, methods: Mapping[str, Method], seed: int) -> list[str]:
    """A table of each dose; all in parts of the range of the body."""
    truth, lines = ct(data), []
    low, high = np.percentile(truth.image[truth.inside], PERCENTILES)

    def scaled(image: NDArray[np.float32]) -> Volume:
        return truth.volume.with_voxels(((image - low) / (high - low)).astype(np.float32)[None])

    clean = replace(truth, volume=scaled(truth.image))
    for photons in PHOTONS:
        coarse = with_dose(truth, photons, seed)
        scan, table = scaled(coarse), Table(COLUMNS, "nlm")
        deviation = float((scan.voxels[0] - clean.image)[truth.inside].std())
        for label, method in methods.items():
            table.add(label, truth.name, scores(clean, method(scan, deviation)))
        heading = f"## Low-dose CT, {photons:.0e} photons ({deviation * (high - low):.0f} HU"
        lines += [f"{heading}, 1 scan)", "", *table.markdown(), ""]
    return lines


def by(model: Any) -> Method:
    """Denoising by a model, as the command does it."""

    def run(volume: Volume, level: float) -> NDArray[np.float32]:
        made = medgen.denoise(volume, model, device="cpu", force=True)
        return np.asarray(made.output, np.float32)

    return run


def told_too(model: Any) -> Method:
    """The same at the strength that the known deviation asks for.

    A model takes out what it sees, the scan's own noise as well, which the truth has. Of a change
    of variance ``v`` the part ``deviation**2 / v`` comes nearest to that truth, if the two noises
    are independent (Wiener 1949).
    """
    full = by(model)

    def run(volume: Volume, level: float) -> NDArray[np.float32]:
        scan = volume.voxels[0]
        change = full(volume, level) - scan
        # Air has less noise than tissue.
        variance = float(change[ndimage.gaussian_filter(scan, 2.0) > AIR].var())
        return scan + np.float32(min(1.0, level**2 / variance)) * change

    return run


def told(name: str) -> Method:
    """A classical method that knows the deviation."""
    function = CLASSICAL["denoise"][name]
    return lambda volume, level: function(volume.voxels[0], sigma=level)


def main() -> None:
    """Add noise, remove it, compare, write."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--noise", choices=sorted(NOISE), default="rician")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = truths(options.data, options.edge)
    given = models(options.model)
    methods: dict[str, Method] = {"nlm": told("nlm"), "tv": told("tv"), "wavelet": told("wavelet")}
    methods["none"] = lambda volume, _: volume.voxels[0]
    for name, package in given.items():
        methods |= {name: by(package), f"{name}, told": told_too(package)}
    words = "".join(f" --model {option}" for option in options.model)
    lines = [
        "# Denoising real scans",
        "",
        f"`python benchmarks/denoising.py --data DATA{words} --noise {options.noise} "
        f"--edge {options.edge} --seed {options.seed}`",
        "",
        f"{options.noise.capitalize()} noise was added to scans, which are the truth. Levels are "
        "the standard deviation as a part of the scan's range. nlm (non-local means), tv (total "
        "variation) and wavelet are told the true deviation; models are told nothing, and so take "
        "out the scan's own noise as well, which the truth has. A model *told* the deviation is "
        "used at the strength (`--strength`) deviation² / variance of its change. PSNR with a peak "
        "of that range; all inside tissue. 95 % intervals by bootstrap over scans. The "
        "hippocampus crops are those that no model was trained on; of the heads and the template "
        f"the middle {options.edge} voxels along each axis. Low-dose CT: one series of twelve "
        f"slices, its sinograms of {ANGLES} angles with Poisson numbers of photons (Whiting et al. "
        "2006); the classical methods are told its deviation in the body, and models made for MR "
        "are forced to take it.",
        "",
        *described(given),
    ]
    for level in LEVELS:
        for group in dict.fromkeys(truth.group for truth in found):
            table = Table(COLUMNS, "nlm")
            of_group = [truth for truth in found if truth.group == group]
            start = time.perf_counter()
            for number, truth in enumerate(of_group):
                scan = noisy(truth, options.noise, level, options.seed + number)
                for label, method in methods.items():
                    table.add(label, truth.name, scores(truth, method(scan, level)))
            print(f"{level:.0%}, {group}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
            lines += [f"## {level:.0%}, {group} ({len(of_group)} scans)", "", *table.markdown(), ""]
    lines += low_dose_tables(options.data, methods, options.seed)
    write(options.output, lines)


if __name__ == "__main__":
    main()
