"""Real scans that take the place of the truth, and tables: what the restoration benchmarks share.

A scan has noise and blur of its own, which no method can know, so errors never reach zero; they
compare methods, not a method with perfection. Held-out hippocampus crops are those that the split
of :mod:`medgen.grouped_files` never trains on; the three heads and the template, which is a mean of
152 heads and so nearly free of noise, are in no training data.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgen.grouped_files import VOLUMES, files, split
from medgen.io import read
from medgen.metrics.anomaly import bootstrap_interval
from medgen.metrics.paired import compare, paired_test
from medgen.package import ModelPackage, load_package
from medgen.real_scans import RealScansConfig
from medgen.volume import Volume

TEMPLATE = Path(__file__).parents[1] / "sample_data" / "icbm152_t1.nii.gz"
HEADS = ("t1_with_skull", "t2_chronic_stroke", "flair_small")
# These four crops are noise.
BROKEN = ("hippocampus_044", "hippocampus_146", "hippocampus_155", "hippocampus_327")
PERCENTILES = (1.0, 99.0)
MULTIPLE = 4  # edges of the truths, so that 2 and 4 times coarser grids fit exactly


@dataclass(frozen=True, eq=False)
class Truth:
    """A scan taken for the truth.

    Attributes:
        group: Which table it belongs to.
        name: Of the scan.
        volume: One channel, float32; 0 and 1 are its 1st and 99th percentile.
        inside: Where results count ``(X, Y, Z)``: tissue.
    """

    group: str
    name: str
    volume: Volume
    inside: NDArray[np.bool_]

    @property
    def image(self) -> NDArray[np.float32]:
        """Its values ``(X, Y, Z)``."""
        image: NDArray[np.float32] = self.volume.voxels[0]
        return image


def truths(data: Path, edge: int) -> list[Truth]:
    """Held-out hippocampus crops, three heads, a template; the middle ``edge`` voxels of each."""
    config = RealScansConfig(folder=data / "hippocampus" / "images", exclude=BROKEN)
    _, held_out = split(config, lambda folder: [(path, None) for path in files(folder, VOLUMES)])
    found = [_truth("hippocampus", item.path, edge) for item in held_out]
    heads = data / "brain" / "heads"
    found += [_truth("heads", heads / f"{name}.nii.gz", edge) for name in HEADS]
    return [*found, _truth("template", TEMPLATE, edge)]


def _truth(group: str, path: Path, edge: int) -> Truth:
    scan = read(path)
    image = scan.voxels[0].astype(np.float32)
    sizes = [min(size, edge) // MULTIPLE * MULTIPLE for size in image.shape]
    starts = [(have - size) // 2 for have, size in zip(image.shape, sizes, strict=True)]
    affine = scan.affine.copy()
    affine[:3, 3] = scan.geometry.to_world(starts)
    low, high = np.percentile(image, PERCENTILES)
    image = (image - low) / (high - low)
    part = tuple(slice(a, a + size) for a, size in zip(starts, sizes, strict=True))
    # Air is where a smoothed scan stays below a twentieth of its range; a crop of tissue has none.
    tissue = ndimage.gaussian_filter(image, 2.0) > 0.05
    tissue = np.ones_like(tissue) if group == "hippocampus" else tissue
    volume = Volume.from_array(np.ascontiguousarray(image[part]), affine, scan.provenance)
    return Truth(group, path.name.split(".")[0], volume, tissue[part])


def scores(truth: Truth, output: NDArray[np.float32]) -> dict[str, float]:
    """PSNR (dB; peak 1: the range of the truth's percentiles), SSIM and MAE inside tissue."""
    found = compare(truth.image[None], np.asarray(output)[None], 1.0, truth.inside)
    return {name: float(found[name].value or np.nan) for name in ("psnr", "ssim", "mae")}


@dataclass(frozen=True)
class Column:
    """A measure in a table: its key, heading and format."""

    key: str
    heading: str
    form: str


COLUMNS = (
    Column("psnr", "PSNR dB", ".2f"), Column("ssim", "SSIM", ".4f"), Column("mae", "MAE", ".4f"),
)  # fmt: skip


class Table:
    """Scores of methods on truths, printed with 95 % intervals over scans."""

    def __init__(self, columns: Sequence[Column], baseline: str) -> None:
        self.columns, self.baseline = columns, baseline
        self.rows: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)

    def add(self, method: str, scan: str, values: Mapping[str, float]) -> None:
        """The scores of one method on one scan."""
        self.rows[method][scan] = dict(values)
        print(f"{scan:24} {method:28}", *(f"{k} {v:.4g}" for k, v in values.items()), flush=True)

    def markdown(self) -> list[str]:
        """Its lines; the last column tests PSNR against the baseline on the same scans."""
        heads = [column.heading for column in self.columns]
        last = f"dB above {self.baseline} (Wilcoxon p)"
        lines = [f"| method | {' | '.join(heads)} | {last} |", "|---" * (len(heads) + 2) + "|"]
        for method, of_scans in self.rows.items():
            cells = [_cell([of_scans[s][c.key] for s in of_scans], c.form) for c in self.columns]
            lines.append(f"| {method} | {' | '.join(cells)} | {self._against(method)} |")
        return lines

    def _against(self, method: str) -> str:
        if method == self.baseline:
            return ""
        scans = list(self.rows[method])
        mine = [self.rows[method][scan]["psnr"] for scan in scans]
        test = paired_test(mine, [self.rows[self.baseline][scan]["psnr"] for scan in scans])
        least = f"least possible {test.smallest_p_value:.2g}"
        return f"{test.difference:+.2f} ({test.p_value:.2g}, {least})"


def _cell(values: Sequence[float], form: str) -> str:
    mean = format(float(np.mean(values)), form)
    if len(values) < 2:
        return mean
    interval = bootstrap_interval(values)
    return f"{mean} ({format(interval.low, form)} to {format(interval.high, form)})"


def models(options: Sequence[str]) -> dict[str, ModelPackage]:
    """Packages given as ``NAME=FOLDER``, or by the name of one that ships."""
    named = (option.rpartition("=") for option in options)
    return {name or where: load_package(where) for name, _, where in named}


def described(given: Mapping[str, ModelPackage]) -> list[str]:
    """A line for each model, and an empty one behind it."""
    return [
        line
        for name, package in given.items()
        for line in (f"{name}: {package.manifest.summary} (SHA-256 `{package.sha256[:16]}`)", "")
    ]


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real scans")
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME=FOLDER", help="may be repeated"
    )
    parser.add_argument("--edge", type=int, default=128, help="longest edge of a head, in voxels")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    return parser


def write(path: Path, lines: Sequence[str]) -> None:
    """Write the file, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
