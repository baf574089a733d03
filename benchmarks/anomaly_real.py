"""Anomaly detection on real scans with real lesions: untrained baselines beside model packages.

Run it with the folder of the real scans (see CONTRIBUTING.md, "Real data"):

    python benchmarks/anomaly_real.py --data DIR --model brain-mr -o benchmarks/anomaly_real.md

Without ``--model`` only the baselines run. Every model is scored as shipped, and once more with
its intensity prior switched off (or on, if it ships without), from one prediction.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score

from medgen import io, metrics
from medgen.package import ModelPackage, load_package
from medgen.scoring import equalised, find, median_in_mask, score_map
from medgen.volume import Volume

if TYPE_CHECKING:
    from torch import nn

FALSE_FINDINGS = (1, 2, 5)
MINIMUM_FINDING_MM3 = 10.0
# Atropos labels of the tumour slices: 1 CSF, 2 grey, 3 white matter, then the tumour: 4 necrosis,
# 5 oedema, 6 non-enhancing, 7 enhancing (their mean intensities in T1C, T2 and FLAIR agree).
FIRST_TUMOUR_LABEL = 4

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Scan:
    """One image with its truth; ``brain`` is where the image is above 0."""

    group: str
    sequence: str
    volume: Volume
    truth: NDArray[np.bool_]
    brain: NDArray[np.bool_]


def load(group: str, sequence: str, image: Path, labels: Path, first_label: int) -> Scan:
    """Read an image and its labels; ``first_label`` and above is abnormal."""
    volume, truth = io.read(image), io.read(labels)
    if not volume.geometry.same_grid_as(truth.geometry, tolerance_mm=1e-2):
        raise SystemExit(f"{image.name} and {labels.name} lie on different grids")
    return Scan(group, sequence, volume, truth.voxels[0] >= first_label, volume.voxels[0] > 0)


def read_groups(data: Path) -> Iterator[list[Scan]]:
    """The scans that share one table row: one group, one sequence."""
    patient = data / "brain" / "ms_patient26"
    for sequence in ("flair", "t1", "t2"):
        image, truth = patient / f"{sequence}.nii.gz", patient / "lesion.nii.gz"
        yield [load("MS patient 26", sequence.upper(), image, truth, 1)]
    for sequence in ("FLAIR", "T1", "T1C", "T2"):
        yield [
            load(
                "8 tumour slices",
                sequence,
                truth.with_name(truth.name.replace("atropos_truth", sequence)),
                truth,
                FIRST_TUMOUR_LABEL,
            )
            for truth in sorted((data / "brain" / "tumour_slices").glob("*/*/*_atropos_truth_*"))
        ]


def baseline_maps(scan: Scan) -> dict[str, tuple[Map, Mask | None]]:
    """Scores that need no training: the intensity's rank in the brain, and its median."""
    image = scan.volume.voxels[0]
    ranks = equalised(image, scan.brain)
    # Stored intensities are whole numbers; noise of less than one step breaks their ties.
    noise = np.random.default_rng(0).random(image.shape) * smallest_step(image[scan.brain])
    broken = equalised(image + noise, scan.brain)
    maps = {
        "`intensity`, raw": ranks,
        "`intensity`, median 5": median_in_mask(ranks, scan.brain, 5),
        "`intensity`, ties broken, median 5 with 0 outside": ndimage.median_filter(broken, 5),
    }
    if scan.sequence.startswith("T1"):
        dark = np.where(scan.brain, 1 - ranks, np.float32(0))
        maps["`intensity` inverted, median 5"] = median_in_mask(dark, scan.brain, 5)
    return {name: (scores, None) for name, scores in maps.items()}


def smallest_step(values: NDArray[np.floating]) -> float:
    """Smallest difference between two distinct values."""
    return float(np.diff(np.unique(values)).min())


def model_maps(
    package: ModelPackage, method: nn.Module, scan: Scan
) -> dict[str, tuple[Map, Mask | None]]:
    """The package's map as shipped, with its findings, and with the prior switched."""
    from medgen.inference import predict_volume

    prepared = package.preparation.apply(scan.volume)
    predicted = predict_volume(method, prepared.image, prepared.mask, package.inference)
    outputs = {name: np.asarray(value) for name, value in predicted.items()}
    shipped = package.scoring
    prior = shipped.intensity_prior > 0 or shipped.hyperintensity_percentile > 0
    off = {"intensity_prior": 0.0, "hyperintensity_percentile": 0.0}
    side = "auto" if "restored" in outputs else "bright"
    on = {"intensity_prior": 1.0, "prior_side": side}
    switched = shipped.model_copy(update=off if prior else on)
    sides = f"with prior ({shipped.prior_side if prior else side})"
    label, other = (sides, "without prior") if prior else ("without prior", sides)
    variants = {
        f"`{package.manifest.name}`, {label}, as shipped": shipped,
        f"`{package.manifest.name}`, {other}": switched,
    }
    calibration = package.calibration
    maps: dict[str, tuple[Map, Mask | None]] = {}
    for name, scoring in variants.items():
        scores = score_map(
            np.asarray(prepared.image),
            outputs,
            np.asarray(prepared.mask),
            scoring,
            spacing_mm=prepared.grid.spacing_mm,
        )
        on_scan = np.where(prepared.source_mask, prepared.to_source(scores[None])[0], 0)
        own = None
        if calibration and scoring is shipped:
            grid, smallest = scan.volume.geometry, shipped.minimum_volume_mm3
            level = calibration.threshold
            own = find(on_scan, grid, level, prepared.source_mask, smallest)[0]
        maps[name] = (on_scan.astype(np.float32), own)
    return maps


def evaluate(scans: list[Scan], maps: list[Map], findings: list[Mask | None]) -> list[str]:
    """Table cells of one method on one group: voxels pooled over scans, one threshold for all."""
    scores = np.concatenate([m[s.brain] for m, s in zip(maps, scans, strict=True)])
    truth = np.concatenate([s.truth[s.brain] for s in scans])
    precision = metrics.average_precision(scores, truth)
    reference = average_precision_score(truth, scores)
    if abs(precision.value - reference) > 1e-6:
        raise SystemExit(f"AUPRC {precision.value} differs from scikit-learn's {reference}")
    each = [
        metrics.average_precision(m, s.truth, s.brain).value
        for m, s in zip(maps, scans, strict=True)
    ]
    mean = "one subject"
    if len(scans) > 1:
        interval = metrics.bootstrap_interval(each)
        mean = f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    curve = metrics.froc(
        [
            metrics.ScoredScan(m, s.truth, s.brain, s.volume.geometry.voxel_volume_mm3)
            for m, s in zip(maps, scans, strict=True)
        ],
        minimum_volume_mm3=MINIMUM_FINDING_MM3,
        most_false_positives_per_scan=max(FALSE_FINDINGS),
    )
    marked = [m[s.brain] for m, s in zip(findings, scans, strict=True) if m is not None]
    own = f"{metrics.dice(np.concatenate(marked), truth):.3f}" if marked else "–"
    return [
        f"{precision.value:.3f}",
        mean,
        f"{precision.prevalence:.4f}",
        f"{metrics.auroc(scores, truth):.3f}",
        f"{metrics.best_dice(scores, truth).value:.3f}",
        own,
        *(f"{curve.sensitivity_at(number):.2f}" for number in FALSE_FINDINGS),
    ]


def rows(data: Path, packages: list[ModelPackage]) -> Iterator[list[str]]:
    """One table row per group, sequence and method."""
    for scans in read_groups(data):
        start = time.perf_counter()
        found = [baseline_maps(scan) for scan in scans]
        for package in packages:
            if scans[0].volume.spatial_dims not in package.manifest.contract.spatial_dims:
                print(f"{package.manifest.name} cannot read {scans[0].group}: left out")
                continue
            method = package.method()
            for scan, maps in zip(scans, found, strict=True):
                maps.update(model_maps(package, method, scan))
        for name in found[0]:
            chosen = [maps[name] for maps in found]
            cells = evaluate(scans, [m for m, _ in chosen], [own for _, own in chosen])
            yield [scans[0].group, scans[0].sequence, name, *cells]
        seconds = time.perf_counter() - start
        print(f"{scans[0].group}, {scans[0].sequence}: {seconds:.1f} s", flush=True)


RULE = f"""\
**Data.** MS patient 26 (Lesjak et al. 2017, 3-D, 1 mm, consensus lesion mask) and eight slices of
high-grade glioma (BRATS 2013 example; tumour is Atropos label {FIRST_TUMOUR_LABEL} to 7: necrosis,
oedema, non-enhancing, enhancing). Both are for evaluation only.

**What was used to choose `brain-mr`**: held-out drawn images and the tumour slices (flips, prior).
The MS patient was looked at during development too: at step 2,000 of training, when log-odds
averaging and the prior's side were introduced, and at the end, when flips and prior were settled.
The network and its training were not chosen on it. The allowed number of false findings per drawn
scan was raised from 0.5 to 3 after seeing how few findings this patient and the sample scan
showed; that moves *Dice, own threshold* alone. The baselines `brain-vae`, `brain-dae` and `brain-
pca` had five, five and two minutes of training (467, 388 and 400 steps) on two cores, against
forty (4,802 steps) for `brain-mr`: they show the order of things, not the best those methods can
do. The numbers on the card of `brain-mr` are those of 1.0.0, at most .003 from these.

**Rule.** Evaluated on the input grid inside the brain (image > 0; lesion voxels outside it, at most
18 in one slice, are left out). `intensity` is the rank of each voxel's intensity among the brain's
voxels (ties share their mean rank), 0..1; *median 5* is the median of the brain's voxels in the
5-wide window (5x5x5, or 5x5 in a slice), which sees nothing outside the brain. *Ties broken* adds
seeded noise of less than one grey level first (FLAIR has only 147 levels, and ties cost average
precision) and takes scipy's median with 0 outside: the strongest form of this baseline on the FLAIR
volume, and the mark to beat there. *Prior* is the
intensity prior of `medgen.scoring`: score x rank (*bright*) or, with *auto*, a mixture of rank and
1 - rank that the restoration chooses for each scan. AUPRC (average precision, checked against
scikit-learn in this run), AUROC and Dice pool the voxels of all scans of a row; *per scan* is the
mean over scans with a 95 % bootstrap interval by subject. **Best Dice is optimistic**: the truth
picks its threshold. *Dice, own threshold* is that of the findings a user gets: at the calibrated
threshold, chosen on drawn normal scans. *Sens. @k*: share of lesions found by findings of at
least {MINIMUM_FINDING_MM3:g} mm3 of which a tenth or more is lesion, at the threshold that finds
most with at most k false findings per scan, there and at every higher threshold.
"""

HEAD = [
    "data", "sequence", "method", "AUPRC", "AUPRC per scan", "prevalence", "AUROC",
    "best Dice (optimistic)", "Dice, own threshold", *(f"sens. @{k}" for k in FALSE_FINDINGS),
]  # fmt: skip


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds brain/")
    parser.add_argument("--model", nargs="*", default=[], help="names or folders of packages")
    parser.add_argument("-o", "--output", type=Path, required=True, help="Markdown file")
    options = parser.parse_args()
    packages = [load_package(name) for name in options.model]
    names = " ".join(package.manifest.name for package in packages)
    command = "python benchmarks/anomaly_real.py --data DIR" + (
        f" --model {names}" if names else ""
    )
    table = [HEAD, ["---"] * 3 + ["---:"] * (len(HEAD) - 3), *rows(options.data, packages)]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    versions = [f"{p.manifest.name} {p.manifest.version} ({p.sha256[:12]})" for p in packages]
    text = "\n".join(
        [
            "# Anomaly detection on real scans",
            "",
            f"    {command} -o {options.output.name}",
            "",
            RULE,
            f"Models: {', '.join(versions) or 'none'}.",
            "",
            *lines,
            "",
        ]
    )
    options.output.write_text(text, encoding="utf-8")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
