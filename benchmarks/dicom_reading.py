"""Reading a series of 300 slices of 512 x 512: time and memory against SimpleITK.

    python benchmarks/dicom_reading.py --runs 9 --output benchmarks/results/dicom_reading.md

Both readers find, sort and read the same folder, in turn in one process, so that a drifting machine
harms both alike; files are in the page cache. medgen checks more (identity, gaps, finite values)
and gives float32, SimpleITK gives int16. Peak memory is that of a process of its own, less what it
held after its imports.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.uid import CTImageStorage

from medgen import io
from medgen.volume import Volume

SHAPE = (512, 512, 300)
VOLUME_BYTES = 4 * SHAPE[0] * SHAPE[1] * SHAPE[2]
PEAK = """
import sys

def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

{imports}
import numpy, pydicom
folder = sys.argv[1]
before = peak()
{read}
print(peak() - before)
"""
MEDGEN = ("from medgen import io\nimport medgen.io.dicom", "volume = io.read(folder)")
SIMPLEITK = (
    "import SimpleITK as sitk",
    "r = sitk.ImageSeriesReader()\n"
    "r.SetFileNames(r.GetGDCMSeriesFileNames(folder))\n"
    "volume = r.Execute()",
)


def write_series(folder: Path) -> None:
    """A CT-like series: a noisy ellipse in air, signed, 1 mm slices."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE[:2]), indexing="ij")
    body = np.where(x**2 / 0.7 + y**2 / 0.4 < 1, 1064, 24)
    values = np.empty(SHAPE, np.uint16)
    for z in range(SHAPE[2]):
        values[..., z] = body + rng.integers(0, 60, SHAPE[:2])
    volume = Volume.from_array(values, np.diag([-0.7, -0.7, 1.0, 1.0]))
    for path in io.write_dicom_series(folder, volume, seed="benchmark"):
        d = pydicom.dcmread(path)
        d.Modality, d.SOPClassUID, d.PixelRepresentation = "CT", CTImageStorage, 1
        d.file_meta.MediaStorageSOPClassUID = CTImageStorage
        d.RescaleSlope, d.RescaleIntercept, d.RescaleType = "1", "-1024", "HU"
        d.save_as(path)


def with_medgen(folder: Path) -> Any:
    """One volume."""
    return io.read(folder).voxels[0]


def with_simpleitk(folder: Path) -> Any:
    """The same, as SimpleITK's manual shows it."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def seconds(read: Callable[[Path], Any], folder: Path) -> float:
    """Wall time of one reading; what it gave is thrown away outside the clock."""
    start = time.perf_counter()
    result = read(folder)
    spent = time.perf_counter() - start
    del result
    return spent


def peak_bytes(imports: str, read: str, folder: Path) -> int:
    """Memory that reading takes at most, in a process of its own."""
    code = PEAK.format(imports=imports, read=read)
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return int(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_series(folder)
        reference = sitk.GetArrayFromImage(with_simpleitk(folder))
        same = np.array_equal(with_medgen(folder), reference.T)
        del reference
        ours, theirs = [], []
        for _ in range(options.runs):
            ours.append(seconds(with_medgen, folder))
            theirs.append(seconds(with_simpleitk, folder))
        peaks = [peak_bytes(*code, folder) for code in (MEDGEN, SIMPLEITK)]
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    lines = [
        "# Reading a DICOM series of 300 slices, 512 x 512",
        "",
        f"`python benchmarks/dicom_reading.py --runs {options.runs}`, {platform.machine()} with "
        f"{os.cpu_count()} cores, files in the page cache. The float32 volume takes "
        f"{VOLUME_BYTES / 2**20:.0f} MiB.",
        "",
        "| reader | median s | fastest s | slowest s | peak memory MiB | / float32 volume |",
        "|---|---|---|---|---|---|",
    ]
    for name, times, peak in (
        ("medgen.io.read, float32", ours, peaks[0]),
        (f"SimpleITK {sitk.Version_VersionString()}, int16", theirs, peaks[1]),
    ):
        lines.append(
            f"| {name} | {statistics.median(times):.3f} | {min(times):.3f} | {max(times):.3f} | "
            f"{peak / 2**20:.0f} | {peak / VOLUME_BYTES:.2f} |"
        )
    lines += [
        "",
        f"medgen / SimpleITK, median over pairs of runs: {ratio:.2f}. "
        f"Voxels are {'identical' if same else 'DIFFERENT'}.",
    ]
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
