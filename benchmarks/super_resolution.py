"""Super-resolution of real scans that were made coarse: interpolation, models, and their blends.

The stated degradation: a Gaussian point-spread function or slice profile whose full width at half
maximum is one coarse voxel, sampled at coarse voxels whose outer edges are the scan's, plus
Gaussian noise of 1 % of the scan's range (its 1st to 99th percentile). The truth is the scan
itself, so its own noise counts as detail that a method failed to find.

    python benchmarks/super_resolution.py --data DATA --model brain-super-resolution \
        --output benchmarks/results/super_resolution.md

With ``--blend A B`` the models between A, trained for small errors, and B, the same one trained on
with a critic, show what sharpness costs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from restoration_truths import (
    COLUMNS,
    Column,
    Table,
    Truth,
    arguments,
    described,
    models,
    scores,
    truths,
    write,
)

import medgen
from medgen.classical import enlarge
from medgen.corruption.resolution import Sampling, consistent, downsample, sampling_for
from medgen.features import FeatureExtractor
from medgen.package import load_package
from medgen.tasks.blend import interpolate
from medgen.volume import Volume

Factors = tuple[int, int, int]
# Name: how many fine voxels lie along a coarse one.
DEGRADATIONS: dict[str, Factors] = {
    "x2": (2, 2, 2), "x4": (4, 4, 4), "thick slices, 4 times": (1, 1, 4),
}  # fmt: skip
NOISE = 0.01
SMALLEST = 16  # voxels along an axis; what `medgen super-resolve` takes
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
PERCEPTUAL = (
    *COLUMNS[:2],
    Column("sharpness", "sharpness", ".3f"), Column("features", "feature distance", ".4f"),
)  # fmt: skip

Method = Callable[[Volume, Factors], NDArray[np.float32]]


def _samplings(shape: Sequence[int], factors: Factors) -> list[Sampling | None]:
    pairs = zip(shape, factors, strict=True)
    return [sampling_for(size, factor) if factor > 1 else None for size, factor in pairs]


def coarse(truth: Truth, factors: Factors, seed: int) -> Volume:
    """What a scanner with larger voxels would have seen."""
    image = torch.from_numpy(truth.image)
    small = downsample(image, _samplings(image.shape, factors))
    generator = torch.Generator().manual_seed(seed)
    small = small + NOISE * torch.randn(small.shape, generator=generator)
    # Outer edges agree: the first coarse voxel's centre lies further in.
    affine = truth.volume.affine.copy()
    affine[:3, :3] *= factors
    affine[:3, 3] = truth.volume.geometry.to_world((np.array(factors) - 1) / 2)
    return Volume.from_array(small.numpy(), affine, truth.volume.provenance)


def by(model: Any, network: Any = None) -> Method:
    """Super-resolution by a model or an interpolation, as the command does it.

    A scan too small for it is continued by reflection, and the result cut to its own part.
    """

    def run(scan: Volume, factors: Factors) -> NDArray[np.float32]:
        asked: dict[str, Any] = {"isotropic": True}
        if len(set(factors)) == 1:
            asked = {"scale": float(factors[0])}
        missing = [max(0, SMALLEST - size) for size in scan.geometry.shape]
        around = [((count + 1) // 2,) * 2 for count in missing]
        voxels = np.pad(scan.voxels[0], around, mode="symmetric")
        wider = Volume.from_array(voxels, scan.affine, scan.provenance)
        made = medgen.super_resolve(wider, model, method=network, device="cpu", force=True, **asked)
        part = tuple(
            slice(before * factor, (before + size) * factor)
            for (before, _), size, factor in zip(around, scan.geometry.shape, factors, strict=True)
        )
        return np.asarray(made.output[part], np.float32)

    return run


def consistent_cubic(scan: Volume, factors: Factors) -> NDArray[np.float32]:
    """Cubic interpolation that is then made to agree with the scan, as models' results are.

    What models gain above this is what they learnt; the rest of their gain is this projection.
    """
    image = scan.voxels[0]
    fine = tuple(size * factor for size, factor in zip(image.shape, factors, strict=True))
    smooth = torch.from_numpy(enlarge(image, fine))
    result = consistent(smooth, torch.from_numpy(image), _samplings(fine, factors))
    return result.numpy()


def sharpness(truth: Truth, output: NDArray[np.float32]) -> float:
    """Mean size of the gradient in tissue, as a part of the truth's; 1 is as sharp."""

    def steepness(image: NDArray[np.float32]) -> float:
        squares = sum(np.square(slope) for slope in np.gradient(image))
        return float(np.sqrt(squares)[truth.inside].mean())

    return steepness(output) / steepness(truth.image)


def feature_distance(
    extractor: FeatureExtractor, truth: Truth, output: NDArray[np.float32]
) -> float:
    """Mean distance of a learnt description of each slice, 0 for equal images.

    The cosine distance of features of slices along the third axis: what looks alike is near, even
    if voxels differ. It stands for perceptual distances whose networks would have to be downloaded.
    """

    def features(image: NDArray[np.float32]) -> NDArray[np.float64]:
        slices = np.clip(np.moveaxis(image, 2, 0)[::2, None], 0, 1) * 2 - 1
        found = extractor(slices)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return float((1 - (features(truth.image) * features(output)).sum(1)).mean())


def run_tables(
    found: list[Truth], methods: dict[str, Method], seed: int, extractor: FeatureExtractor | None
) -> list[str]:
    """A table for each degradation and group of scans."""
    lines: list[str] = []
    for name, factors in DEGRADATIONS.items():
        for group in dict.fromkeys(truth.group for truth in found):
            table = Table(COLUMNS if extractor is None else PERCEPTUAL, next(iter(methods)))
            of_group = [truth for truth in found if truth.group == group]
            start = time.perf_counter()
            for number, truth in enumerate(of_group):
                scan = coarse(truth, factors, seed + number)
                for label, method in methods.items():
                    output = method(scan, factors)
                    values = scores(truth, output)
                    if extractor is not None:
                        values["sharpness"] = sharpness(truth, output)
                        values["features"] = feature_distance(extractor, truth, output)
                    table.add(label, truth.name, values)
            print(f"{name}, {group}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
            lines += [f"### {name}, {group} ({len(of_group)} scans)", "", *table.markdown(), ""]
    return lines


def blends(first: str, second: str) -> dict[str, Method]:
    """Models between two others."""
    a, b = load_package(first), load_package(second)
    methods: dict[str, Method] = {"cubic": by("cubic"), "cubic, made consistent": consistent_cubic}
    for weight in WEIGHTS:
        network: Any = a.method()
        other: Any = b.method()
        mixed = interpolate(network.state_dict(), other.state_dict(), weight)
        network.load_state_dict(mixed)
        methods[f"weight {weight:g}"] = by(a, network)
    return methods


def main() -> None:
    """Degrade, restore, compare, write."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--blend", nargs=2, metavar=("A", "B"), help="packages to blend")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = truths(options.data, options.edge)
    given = models(options.model)
    methods: dict[str, Method] = {name: by(name) for name in ("cubic", "linear", "nearest")}
    methods["cubic, made consistent"] = consistent_cubic
    methods |= {name: by(package) for name, package in given.items()}
    words = "".join(f" --model {option}" for option in options.model)
    words += f" --blend {' '.join(options.blend)}" if options.blend else ""
    lines = [
        "# Super-resolution of real scans",
        "",
        f"`python benchmarks/super_resolution.py --data DATA{words} --edge {options.edge} "
        f"--seed {options.seed}`",
        "",
        "Scans were made coarse by a Gaussian whose full width at half maximum is one coarse "
        f"voxel, and got noise of {NOISE:.0%} of their range. The truth is the scan, with its own "
        "noise. Models' results are made consistent with the coarse scan as far as its noise "
        "allows, as `medgen super-resolve` does; a row shows what exact consistency alone does for "
        "cubic splines. Scans "
        f"of fewer than {SMALLEST} coarse voxels along an axis are continued by reflection. PSNR "
        "with a peak of the range; all inside tissue. 95 % intervals by bootstrap over scans. The "
        "hippocampus crops are those that no model was trained on; of the heads and the template "
        f"the middle {options.edge} voxels along each axis.",
        "",
        *described(given),
        *run_tables(found, methods, options.seed, None),
    ]
    if options.blend:
        extractor = FeatureExtractor.load()
        lines += [
            "## Faithful or sharp: blends of two models",
            "",
            f"Weight 0 is {Path(options.blend[0]).name}, 1 is {Path(options.blend[1]).name} "
            "(`medgen models blend`). Sharpness: mean size of the gradient, as a part of the "
            "truth's. Feature distance: cosine distance of slices as medgen-features describes "
            "them; smaller looks more alike.",
            "",
            *run_tables(found, blends(*options.blend), options.seed, extractor),
        ]
    write(options.output, lines)


if __name__ == "__main__":
    main()
