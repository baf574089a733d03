"""The whole command against its floor, on a 182 x 218 x 182 scan.

    python benchmarks/speed.py --model brain-mr --runs 5 --output benchmarks/results/speed.md

The floor is a process that only imports torch, reads the scan, runs the same forward passes (same
network, same batch shapes) and writes the same three images. Command and floor run in turn, as
whole processes, so that a drifting machine harms both alike. Start-up of light commands is timed
in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

SHAPE = (182, 218, 182)

FLOOR = """
import json, sys
import numpy as np
import torch
from medgen import io
from medgen.package import load_package

scan, shapes, out, model = sys.argv[1:]
volume = io.read(scan)
method = load_package(model).method()
with torch.inference_mode():
    for shape in json.load(open(shapes)):
        method.predict(torch.zeros(shape))
image = volume.voxels[0]
noise = (image * 0.37).astype(np.float32)
io.write_nifti(out + "/map.nii.gz", noise, volume.geometry, kind="map")
io.write_nifti(out + "/restored.nii.gz", noise, volume.geometry, kind="image")
io.write_nifti(out + "/mask.nii.gz", (image > 500).astype(np.uint8), volume.geometry, kind="label")
"""


def draw_scan(scan: Path, model: str) -> list[list[int]]:
    """Write the scan, and say the shape of every batch that the network will see of it."""
    from medgen import io
    from medgen.package import load_package
    from medgen.phantoms import brain

    volume = brain(SHAPE, spacing_mm=1.0, contrast="flair", lesion_radius_mm=9.0).image
    io.write_nifti(scan, volume.voxels[0].astype("int16"), volume.geometry, kind="image")
    return batch_shapes(load_package(model), io.read(scan))


def batch_shapes(package: Any, scan: Any) -> list[list[int]]:
    """The shape of every batch that a detector's network sees of a scan."""
    from medgen.package import run_model

    method, shapes = package.method(), []
    predict = method.predict

    def record(image: Any) -> Any:
        shapes.append(list(image.shape))
        return predict(image)

    method.predict = record
    run_model(package, scan, method=method)
    return shapes


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds and peak memory (GB) of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        error = process.stderr.read().decode() if process.stderr else ""
        raise SystemExit(f"{' '.join(command)} failed:\n{error}")
    return seconds, usage.ru_maxrss / 1e6


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="brain-mr")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    medgen = str(Path(sys.executable).with_name("medgen"))
    rows: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scan = folder / "scan.nii.gz"
        shapes = folder / "shapes.json"
        # In a process of its own: a child's peak memory starts from its parent's size.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            shapes.write_text(json.dumps(pool.submit(draw_scan, scan, options.model).result()))
        for number in range(options.runs):
            drawn, floor = folder / f"out{number}", folder / f"floor{number}"
            floor.mkdir()
            commands = {
                "detect-anomalies": [
                    medgen, "detect-anomalies", str(scan), "-o", str(drawn),
                    "--model", options.model, "--device", "cpu", "-q",
                ],
                "floor": [
                    sys.executable, "-c", FLOOR, str(scan), str(shapes), str(floor), options.model
                ],
                "medgen --help": [medgen, "--help"],
                "medgen info": [medgen, "info"],
                "medgen check": [medgen, "check", str(scan)],
            }  # fmt: skip
            for what, command in commands.items():
                rows.setdefault(what, []).append(measured(command))
    ratio = statistics.median(
        whole / least
        for (whole, _), (least, _) in zip(rows["detect-anomalies"], rows["floor"], strict=True)
    )
    lines = [
        "# Speed of the whole command",
        "",
        f"`python benchmarks/speed.py --model {options.model} --runs {options.runs}` on "
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}; "
        f"a {' x '.join(map(str, SHAPE))} phantom at 1 mm. Whole processes, in turn.",
        "",
        "| command | median s | min s | max s | peak memory GB |",
        "|---|---|---|---|---|",
    ]
    for what, values in rows.items():
        seconds = [value for value, _ in values]
        peak = max(memory for _, memory in values)
        lines.append(
            f"| {what} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | "
            f"{max(seconds):.2f} | {peak:.2f} |"
        )
    lines += [
        "",
        f"detect-anomalies takes **{ratio:.2f}** times its floor (median of the pairs; aim: at "
        "most 1.6). The floor imports torch, reads, runs the same forward passes and writes; the "
        "command also imports MONAI, finds the brain, resamples, scores, lists findings, draws "
        "the overview and the report, hashes its files and re-reads what it wrote.",
        "",
    ]
    text = "\n".join(lines)
    sys.stdout.write(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
