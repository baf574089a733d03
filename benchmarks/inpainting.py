"""Inpainting of real scans: holes in healthy tissue with known truth, and lesions made healthy.

Irregular holes of three sizes are cut into the brain tissue of real scans, away from known lesions,
and filled by the smoothest surface (biharmonic), by the nearest values, and by models; inside the
holes the results are compared with what was there. Then the lesions of a patient are removed: what
an expert marked, and what ``--remove-anomalies`` finds; the intensities there should become those
of the tissue around.

    python benchmarks/inpainting.py --data DATA --model brain-inpaint \
        --model gated_conv=PACKAGE --output benchmarks/results/inpainting.md
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from restoration_truths import (
    HEADS,
    PERCENTILES,
    TEMPLATE,
    Column,
    Table,
    arguments,
    described,
    models,
    write,
)
from scipy import ndimage, stats

import medgen
from medgen.brain import extract_brain, find_foreground, why_skull_stripped
from medgen.corruption.lesions import blob
from medgen.io import read
from medgen.metrics.paired import mean_squared_error, psnr, ssim
from medgen.metrics.seam import seam
from medgen.volume import Volume

Mask = NDArray[np.bool_]
Model = Any
SIZES_MM = (8.0, 16.0, 30.0)  # mean diameters
HOLES = 8  # in each scan, of each size, if so many fit
GAP_MM = 8.0  # between two holes, and to a known lesion
TRIES = 400
CONTRASTS = ("flair", "t1", "t2")
# Tissue around lesions: from the first to the second distance to any of them.
AROUND_MM = (2.0, 6.0)
COLUMNS = (
    Column("psnr", "PSNR dB", ".2f"), Column("ssim", "SSIM", ".4f"), Column("mse", "MSE", ".5f"),
    Column("seam", "seam", ".2f"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scan:
    """A real scan.

    Attributes:
        name: For the tables.
        volume: As read.
        tissue: Where holes may be cut ``(X, Y, Z)``: brain, without known lesions.
        low: 1st percentile of the brain, which becomes 0 for all measures.
        high: 99th percentile, which becomes 1.
    """

    name: str
    volume: Volume
    tissue: Mask
    low: float
    high: float

    def scaled(self, image: NDArray[Any]) -> NDArray[np.float32]:
        """Values with the brain's 1st and 99th percentile at 0 and 1."""
        return (np.asarray(image, np.float32) - self.low) / (self.high - self.low)


def scans(data: Path) -> Iterator[Scan]:
    """Three heads, the ICBM template, and a patient's three contrasts with their lesions."""
    for name in HEADS:
        yield _scan(f"head: {name}", data / "brain" / "heads" / f"{name}.nii.gz", None)
    yield _scan("ICBM 152 T1", TEMPLATE, None)
    patient = data / "brain" / "ms_patient26"
    lesion = read(patient / "lesion.nii.gz").voxels[0] > 0
    for name in CONTRASTS:
        yield _scan(f"MS patient: {name}", patient / f"{name}.nii.gz", lesion)


def _scan(name: str, path: Path, lesion: Mask | None) -> Scan:
    volume = read(path)
    brain = find_foreground(volume)[0]
    if why_skull_stripped(brain, volume.geometry) is None:
        brain = extract_brain(volume).mask
    low, high = np.percentile(volume.voxels[0][brain], PERCENTILES)
    tissue = brain if lesion is None else brain & ~_grown(lesion, GAP_MM, volume)
    return Scan(name, volume, tissue, float(low), float(high))


def _grown(mask: Mask, by_mm: float, volume: Volume) -> Mask:
    """All voxels within a distance of a mask."""
    grown = np.zeros_like(mask)
    where = ndimage.find_objects(mask.astype(np.uint8))
    if where:
        spacing = volume.geometry.spacing_mm
        reach = [int(np.ceil(by_mm / length)) for length in spacing]
        box = tuple(
            slice(max(0, part.start - margin), part.stop + margin)
            for part, margin in zip(where[0], reach, strict=True)
        )
        grown[box] = ndimage.distance_transform_edt(~mask[box], sampling=spacing) <= by_mm
    return grown


def healthy_holes(scan: Scan, diameter_mm: float, seed: int) -> Mask:
    """Up to :data:`HOLES` irregular holes in healthy tissue, apart from each other."""
    generator = torch.Generator().manual_seed(seed)
    shape = scan.tissue.shape
    spacing = float(np.mean(scan.volume.geometry.spacing_mm))
    holes = np.zeros(shape, bool)
    free, count = scan.tissue.copy(), 0
    for _ in range(TRIES):
        inside = np.flatnonzero(free)
        if count == HOLES or not inside.size:
            break
        chosen = int(torch.randint(len(inside), (), generator=generator))
        centre = tuple(int(n) for n in np.unravel_index(inside[chosen], shape))
        made = blob(centre, diameter_mm / 2 / spacing, shape, generator)
        hole = np.zeros(shape, bool)
        hole[made.box] = made.alpha.numpy() > 0.5
        if hole.any() and free[hole].all():
            holes |= hole
            count += 1
            free &= ~_grown(hole, GAP_MM, scan.volume)
    return holes


def filled(scan: Scan, model: Model, hole: Mask) -> Any:
    """The result of ``medgen inpaint`` with a mask."""
    return medgen.inpaint(scan.volume, model, mask=hole, device="cpu", force=True)


def scores(scan: Scan, output: NDArray[Any], hole: Mask) -> dict[str, float]:
    """All inside the holes, with a data range of 1: the brain's 1st to 99th percentile."""
    truth, made = scan.scaled(scan.volume.voxels[0]), scan.scaled(output)
    return {
        "psnr": psnr(truth, made, 1.0, hole),
        "ssim": ssim(truth, made, 1.0, hole),
        "mse": mean_squared_error(truth, made, hole),
        "seam": seam(output, hole) or np.nan,
    }


def coverage(scan: Scan, result: Any, hole: Mask) -> float | None:
    """Share of the true values inside the interval that the uncertainty stands for."""
    if result.uncertainty is None or result.level is None:
        return None
    error = np.abs(np.asarray(result.output, np.float32) - scan.volume.voxels[0])[hole]
    return float((error <= result.uncertainty[hole]).mean())


def hole_tables(found: Sequence[Scan], methods: dict[str, Model], seed: int) -> list[str]:
    """Fill holes of each size in each scan; means over scans, and each scan."""
    lines = []
    for number, size in enumerate(SIZES_MM):
        table, covered = Table(COLUMNS, "biharmonic"), defaultdict(list)
        voxels = 0
        for index, scan in enumerate(found):
            start = time.perf_counter()
            hole = healthy_holes(scan, size, seed + 100 * number + index)
            if not hole.any():
                print(f"{scan.name}: no place for {size:g} mm", file=sys.stderr)
                continue
            voxels += int(hole.sum())
            for label, model in methods.items():
                result = filled(scan, model, hole)
                table.add(label, scan.name, scores(scan, result.output, hole))
                share = coverage(scan, result, hole)
                if share is not None:
                    covered[label].append((result.level, share))
            print(f"{scan.name}, {size:g} mm: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        lines += [f"## Holes of {size:g} mm ({voxels} voxels)", "", *table.markdown(), ""]
        lines += [*_each_scan(table), ""]
        lines += [
            f"{label}: {np.mean([share for _, share in shares]):.0%} of the true values lie inside "
            f"the interval for {shares[0][0]:.0%} ({min(s for _, s in shares):.0%} to "
            f"{max(s for _, s in shares):.0%} by scan)."
            for label, shares in covered.items()
        ]
        lines += [""] if covered else []
    return lines


def _each_scan(table: Table) -> list[str]:
    """PSNR and SSIM of every method on every scan."""
    methods = list(table.rows)
    lines = [f"| PSNR dB / SSIM | {' | '.join(methods)} |", "|---" * (len(methods) + 1) + "|"]
    for scan in table.rows[methods[0]]:
        cells = [
            f"{v['psnr']:.2f} / {v['ssim']:.3f}" for v in (table.rows[m][scan] for m in methods)
        ]
        lines.append(f"| {scan} | {' | '.join(cells)} |")
    return lines


def lesion_table(data: Path, methods: dict[str, Model], detector: str) -> list[str]:
    """Intensities inside the expert's lesion mask and around it, before and after."""
    patient = data / "brain" / "ms_patient26"
    expert = read(patient / "lesion.nii.gz").voxels[0] > 0
    lines = [
        "| scan | filled | by | part of the lesions filled | ml filled elsewhere | mean (SD) | "
        "5th to 95th percentile | standard deviations from the surroundings | "
        "Wasserstein distance |",
        "|---" * 9 + "|",
    ]
    for name in CONTRASTS:
        scan = _scan(name, patient / f"{name}.nii.gz", expert)
        brain = find_foreground(scan.volume)[0]
        near, far = (_grown(expert, distance, scan.volume) for distance in AROUND_MM)
        around = scan.scaled(scan.volume.voxels[0])[far & ~near & brain]
        lines.append(f"| {name} | tissue {AROUND_MM[0]:g} to {AROUND_MM[1]:g} mm around | | | | "
                     f"{_spread(around)} | 0 | 0 |")  # fmt: skip
        before = scan.scaled(scan.volume.voxels[0])[expert]
        lines.append(f"| {name} | nothing | | | | {_spread(before)} | {_away(before, around)} |")
        for label, model in methods.items():
            marked = medgen.inpaint(
                scan.volume, model, mask=expert, grow_mm=1.0, device="cpu", force=True
            )
            detected = medgen.inpaint(
                scan.volume, model, remove_anomalies=True, detector=detector, device="cpu",
                force=True,
            )  # fmt: skip
            for words, result in (("expert's mask", marked), ("`--remove-anomalies`", detected)):
                after = scan.scaled(result.output)[expert]
                elsewhere = (result.invented & ~_grown(expert, AROUND_MM[0], scan.volume)).sum()
                volume_ml = float(elsewhere) * scan.volume.geometry.voxel_volume_mm3 / 1000
                lines.append(
                    f"| {name} | {words} | {label} | {result.invented[expert].mean():.0%} | "
                    f"{volume_ml:.1f} | {_spread(after)} | {_away(after, around)} |"
                )
                print(lines[-1], flush=True)
    return lines


def _spread(values: NDArray[Any]) -> str:
    low, high = np.percentile(values, [5, 95])
    return f"{values.mean():.2f} ({values.std():.2f}) | {low:.2f} to {high:.2f}"


def _away(values: NDArray[Any], around: NDArray[Any]) -> str:
    """How far a distribution lies from that of the surroundings."""
    deviations = (values.mean() - around.mean()) / around.std()
    return f"{deviations:+.2f} | {stats.wasserstein_distance(values, around):.3f}"


def main() -> None:
    """Cut, fill, compare, write."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--detector", default="brain-mr", help="model for --remove-anomalies")
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = models(options.model)
    methods: dict[str, Model] = {"biharmonic": "biharmonic", "nearest": "nearest", **given}
    found = list(scans(options.data))
    words = "".join(f" --model {option}" for option in options.model)
    lines = [
        "# Inpainting real scans",
        "",
        f"`python benchmarks/inpainting.py --data DATA{words} --seed {options.seed}`",
        "",
        f"Up to {HOLES} irregular holes of each size, all in the brain and at least {GAP_MM:g} mm "
        "from each other and from the patient's marked lesions, are filled at once. The truth is "
        "the scan itself, with its noise, which nobody can predict. All measures are taken inside "
        "the holes; the range is the brain's 1st to 99th percentile. The seam is the mean jump "
        "across a hole's border relative to that between neighbours outside: 1 is invisible, a "
        "smooth filling of textured tissue is below. 95 % intervals by bootstrap over scans. The "
        "chronic stroke of one head is not marked, so holes may touch it.",
        "",
        *described(given),
        *hole_tables(found, methods, options.seed),
        "## Lesions made healthy",
        "",
        "Multiple sclerosis, one patient. Intensities inside the expert's lesion mask (0 and 1: "
        "the brain's 1st and 99th percentile), before and after filling the expert's mask grown "
        f"by 1 mm, or what the model `{options.detector}` finds; against those of the tissue "
        "around. In T1 and T2 the same mask is used.",
        "",
        *lesion_table(options.data, methods, options.detector),
        "",
    ]
    write(options.output, lines)


if __name__ == "__main__":
    main()
