"""Restoration tasks against bare forward passes, and their memory estimate against reality.

Speed: the whole task on a head in memory (finding the foreground, turning, scaling, tiling,
stitching, uncertainty, consistency, measures) against the same network on the same tiles in the
same batches and nothing else; in one process on one thread, runs alternating, processor time.

Memory: a process of its own per task reads a scan of 512 x 512 x 300 voxels from a file and
restores it (super-resolution: a scan of thick slices *to* that size). Only every so many-th batch
really runs through the network, the others are copied; that changes no peak, as all batches need
the same. The peak of the process is compared with the estimate that the task printed.

The models are those that ship with medgen.

    python benchmarks/restoration_speed.py --output benchmarks/results/restoration_speed.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from medgen.manifest import RESTORATION_TASKS, Restored
from medgen.package import ModelPackage, load_package
from medgen.phantoms import brain
from medgen.tasks.denoise import denoise
from medgen.tasks.inpaint import inpaint
from medgen.tasks.restoration import DEFAULT_MODELS, Restoration
from medgen.tasks.super_resolve import super_resolve
from medgen.tasks.translate import translate
from medgen.volume import Volume

# The default of `inpaint` has no network.
MODELS = {**DEFAULT_MODELS, "inpaint": "brain-inpaint"}
LARGE = (512, 512, 300)
THICK = 5  # slices of the large result in one of the scan
EVERY = 300  # one of so many batches runs through the network when memory is measured
RESULTS = {
    "inpaint": "filling a ball of 40 mm",
    "super-resolve": f"slices {THICK} times thinner",
    "denoise": "every voxel",
    "translate": "to T2",
}


def restore(
    verb: Restored, scan: Any, shape: tuple[int, ...], package: ModelPackage, method: Any = None
) -> Restoration:
    """The task as the command line calls it; ``shape`` is that of the scan."""
    shared: dict[str, Any] = {"method": method, "device": "cpu", "max_memory_gb": 1000.0}
    if verb == "inpaint":
        middle = np.indices(shape, sparse=True)
        hole = sum((g - n / 2) ** 2 for g, n in zip(middle, shape, strict=True)) < 20**2
        return inpaint(scan, package, mask=hole, **shared)
    if verb == "super-resolve":
        return super_resolve(scan, package, isotropic=True, **shared)
    if verb == "denoise":
        return denoise(scan, package, **shared)
    return translate(scan, package, to="t2", **shared)


class Recorder:
    """A network that remembers the shapes of the batches it is asked for."""

    def __init__(self, network: Any) -> None:
        self.network, self.shapes = network, []
        self.divisor, self.spatial_dims = network.divisor, network.spatial_dims
        self.input_slices = network.input_slices

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """What the network makes of a batch; tracing its memory is no batch."""
        if image.device.type != "meta":
            self.shapes.append(tuple(image.shape))
        result: dict[str, Tensor] = self.network.predict(image)
        return result


class Sometimes(Recorder):
    """A network that runs on one batch of many, and gives zeros for the others."""

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """What the network makes of a batch, or zeros."""
        if image.device.type == "meta" or len(self.shapes) % EVERY == 0:
            return super().predict(image)
        self.shapes.append(tuple(image.shape))
        zeros = image.new_zeros((len(image), self.network.out_channels, *image.shape[2:]))
        return {"output": zeros, "spread": zeros + 0.1}


def seconds(function: Callable[[], Any]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def speed_row(verb: Restored, size: int, runs: int) -> str:
    """Processor seconds of the task and of its bare forward passes."""
    package = load_package(MODELS[verb])
    thick = verb == "super-resolve"
    shape = (size, size + size // 8, size // (THICK if thick else 1))
    scan = brain((size, size + size // 8, size), spacing_mm=180 / size, seed=0, contrast="t1").image
    if thick:
        voxels = scan.voxels[..., : shape[2] * THICK].reshape(1, *shape[:2], -1, THICK).mean(-1)
        scan = Volume.from_array(voxels[0], scan.affine @ np.diag([1, 1, THICK, 1]))
    method = package.method()
    recorder = Recorder(method)
    restore(verb, scan, shape, package, recorder)

    def bare() -> None:
        method.eval()
        with torch.inference_mode():
            for one in recorder.shapes:
                method.predict(torch.zeros(one))

    bare()
    pairs = [
        (seconds(bare), seconds(lambda: restore(verb, scan, shape, package, method)))
        for _ in range(runs)
    ]
    ratio = statistics.median(whole / least for least, whole in pairs)
    least, whole = (min(pair[k] for pair in pairs) for k in (0, 1))
    size_text = " x ".join(map(str, shape))
    return f"| {verb} | {size_text} | {MODELS[verb]} | {least:.2f} | {whole:.2f} | {ratio:.2f} |"


def memory_row(verb: Restored, folder: Path) -> str:
    """Peak of a process of its own against the estimate."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=measure_memory, args=(verb, folder, theirs))
    process.start()
    shape, estimate, peak = ours.recv()
    process.join()
    case = f"{verb}, {RESULTS[verb]} | {' x '.join(map(str, shape))}"
    return f"| {case} | {estimate:.1f} | {peak:.1f} | {peak / estimate:.2f} |"


def measure_memory(verb: Restored, folder: Path, pipe: Any) -> None:
    """Restore the large scan and send its shape, the estimate and the peak in GB."""
    torch.set_num_threads(1)
    package = load_package(MODELS[verb])
    thick = THICK if verb == "super-resolve" else 1
    shape = (*LARGE[:2], LARGE[2] // thick)
    path = folder / f"scan{thick}.nii"
    if not path.exists():
        # Without a constant background, so that every voxel is computed.
        noise = np.random.default_rng(0).integers(0, 50, shape, dtype=np.int16)
        noise[128:384, 96:416, shape[2] // 8 :] += 400
        nib.save(nib.Nifti1Image(noise, np.diag([-0.5, -0.5, 0.5 * thick, 1])), path)
        del noise
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of writing; Linux only
    result = restore(verb, path, shape, package, Sometimes(package.method()))
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    pipe.send((shape, result.estimated_memory_gb, peak * 1024 / 1e9))


def main() -> None:
    """Measure, print, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--size", type=int, default=96, help="width of the head in voxels")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=RESTORATION_TASKS, default=RESTORATION_TASKS)
    parser.add_argument("--only", choices=("speed", "memory"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    arguments = " ".join(a for a in sys.argv[1:] if not a.endswith(".md") and a != "--output")
    lines = [
        "# Restoration against bare forward passes, and its memory against the estimate",
        "",
        f"`python benchmarks/restoration_speed.py {arguments}`".replace(" `", "`"),
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, one torch thread, Python "
        f"{platform.python_version()}, torch {torch.__version__}. Seconds are processor time, the "
        f"least of {options.runs} alternating runs; the ratio is the median of the pairs.",
    ]
    if options.only != "memory":
        lines += ["", "## Speed", "", "| task | scan | model | bare s | task s | ratio |",
                  "|---|---|---|---|---|---|"]  # fmt: skip
        for verb in options.tasks:
            lines.append(speed_row(verb, options.size, options.runs))
            print(lines[-1], flush=True)
    if options.only != "speed":
        lines += ["", "## Memory", "",
                  "| task | scan | estimate GB | peak GB | peak / estimate |",
                  "|---|---|---|---|---|"]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            for verb in options.tasks:
                lines.append(memory_row(verb, Path(folder)))
                print(lines[-1], flush=True)
        lines += ["", "The peak counts Python, torch and the other libraries."]
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
