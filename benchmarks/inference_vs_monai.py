"""Tiled prediction against MONAI's SlidingWindowInferer, and the memory estimate against reality.

Same network, weights, tiles, overlap, blending and batch size, in one process, runs alternating,
on one thread. Times are processor time, which neighbours on the machine disturb least. The image
is the field of view of a head scan, the mask the brain of the ICBM 152 template (nilearn) in its
middle. A coarser spacing shrinks image and tiles alike and leaves the proportions as they are.

    python benchmarks/inference_vs_monai.py --output benchmarks/results/inference_vs_monai.md
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import monai
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from medgen.inference import Inference, estimate_memory_gb, predict_volume

CONTEXT_VOXELS = Inference().context_voxels
FIELD_OF_VIEW_MM = (256, 256, 176)  # of a common head scan
CASES = (  # mode, tile in mm, blending
    ("3d", (64, 64, 64), "gaussian"),
    ("3d", (96, 96, 96), "gaussian"),
    ("2d", (64, 64), "gaussian"),
)
HEAD = (91, 109, 91)  # voxels; the common template box at 2 mm, for the memory table


class UNet(nn.Module):
    """A very small U-Net under the contract of a method: whatever surrounds it weighs the more."""

    divisor = 16
    input_slices = 1

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        torch.manual_seed(0)
        self.network = BasicUNet(spatial_dims, 1, 1, features=(4, 4, 8, 8, 8, 4), norm="batch")
        # Statistics of one batch, without which an untrained network's output hardly varies.
        for layer in self.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = 1.0
        with torch.no_grad():
            self.network(torch.rand((4, 1, *[32] * spatial_dims)))

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """One map."""
        return {"score": self.network(image)}


def in_voxels(sizes_mm: tuple[int, ...], spacing_mm: int) -> tuple[int, ...]:
    """Sizes in whole voxels."""
    return tuple(size // spacing_mm for size in sizes_mm)


def brain_mask(spacing_mm: int) -> Tensor:
    """``(1, X, Y, Z)``, true in the ICBM 152 brain, centred in the field of view."""
    from nilearn.datasets import load_mni152_brain_mask

    brain = np.asarray(load_mni152_brain_mask(resolution=spacing_mm).dataobj) > 0
    spans = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    brain = brain[tuple(slice(span[0], span[-1] + 1) for span in spans)]
    field = in_voxels(FIELD_OF_VIEW_MM, spacing_mm)
    free = [whole - size for whole, size in zip(field, brain.shape, strict=True)]
    return torch.from_numpy(np.pad(brain, [(n // 2, n - n // 2) for n in free]))[None]


def around(inside: Tensor, axis: int) -> slice:
    """Where a mask ``(X, Y, Z)`` lies along one axis, with the background that inference keeps."""
    where = inside.any(tuple({0, 1, 2} - {axis})).nonzero()
    return slice(max(int(where[0]) - CONTEXT_VOXELS, 0), int(where[-1]) + 1 + CONTEXT_VOXELS)


def timed(function: Callable[[], Tensor]) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    function()
    return time.process_time() - start


def compare(
    mode: str, tile: tuple[int, ...], blending: str, image: Tensor, mask: Tensor | None, runs: int
) -> str:
    """One row of the table: largest difference, both times, and their ratio."""
    dims = len(tile)
    method = UNet(dims).eval()
    inference = Inference(mode=mode, tile=tile, blending=blending, batch_size=8)
    reference = SlidingWindowInferer(tile, sw_batch_size=8, overlap=0.5, mode=blending)

    def theirs(image: Tensor = image) -> Tensor:
        # MONAI takes the slices as a batch of 2-D images.
        stack = image[None] if dims == 3 else image.movedim(3, 0)
        with torch.no_grad():
            out = reference(stack, method.network)
        return out[0] if dims == 3 else out.movedim(0, 3)

    def ours() -> Tensor:
        return predict_volume(method, image, mask, inference)["score"]

    # Tiles lie in the mask's box: the results are compared there, the times for the whole image.
    inside = torch.ones_like(image, dtype=torch.bool) if mask is None else mask
    box = (slice(None), *(around(inside.any(0), axis) for axis in range(3)))
    theirs()  # warm now, and so is the other after the next line
    difference = (ours()[box] - theirs(image[box]))[inside[box]].abs().max().item()
    pairs = [(timed(theirs), timed(ours)) for _ in range(runs)]
    their_times, our_times = zip(*pairs, strict=True)
    ratios = [them / us for them, us in pairs]
    predicted = "all" if mask is None else "brain only"
    return (
        f"| {mode}, tile {'×'.join(map(str, tile))}, {blending} | {predicted} | {difference:.1e} "
        f"| {min(their_times):.2f} / {statistics.median(their_times):.2f} "
        f"| {min(our_times):.2f} / {statistics.median(our_times):.2f} "
        f"| {min(their_times) / min(our_times):.2f} | {statistics.median(ratios):.2f} |"
    )


def resident_gb(what: str) -> float:
    """Resident memory of this process now ("VmRSS") or at its largest ("VmHWM"); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e9


def measure_memory(shape: tuple[int, ...], settings: dict[str, object]) -> tuple[float, float]:
    """Estimated and measured GB, in a process of its own."""
    inference = Inference(**settings)
    method = UNet(3 if inference.mode == "3d" else 2)
    small = inference.model_copy(update={"tile": None, "batch_size": 1})
    predict_volume(method, torch.rand((1, 16, 16, 16)), None, small)  # loads the libraries
    estimate = estimate_memory_gb(method, (1, *shape), inference)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = resident_gb("VmRSS")
    image = torch.rand((1, *shape))
    predict_volume(method, image, None, inference)
    return estimate, resident_gb("VmHWM") - before


def memory_row(shape: tuple[int, ...], settings: dict[str, object]) -> str:
    """One row of the memory table."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        estimate, measured = pool.apply(measure_memory, (shape, settings))
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"| {'×'.join(map(str, shape))} | {words} | {estimate:.2f} | {measured:.2f} |"


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--spacing", type=int, default=2, help="mm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    mask = brain_mask(options.spacing)
    load = os.getloadavg()[0]
    lines = [
        "# Tiled prediction against MONAI's SlidingWindowInferer",
        "",
        f"`python benchmarks/inference_vs_monai.py {' '.join(sys.argv[1:])}`",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread, "
        f"load {load:.1f} before the start; Python {platform.python_version()}, torch "
        f"{torch.__version__}, MONAI {monai.__version__}. Very small U-Net, image "
        f"{'×'.join(map(str, mask.shape[1:]))} (a head's field of view at {options.spacing} mm, "
        f"{mask.float().mean().item():.0%} of it brain), overlap 0.5, batch 8, "
        f"{options.runs} alternating runs, seconds of processor time.",
        "",
        "| mode | predicted | largest difference | MONAI min / median | medgen min / median "
        "| ratio of minima | median ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for mode, tile_mm, blending in CASES:
        tile = in_voxels(tile_mm, options.spacing)
        image = torch.rand((1, *mask.shape[1:]))
        for where in (None, mask):
            lines.append(compare(mode, tile, blending, image, where, options.runs))
            print(lines[-1], flush=True)
    lines += [
        "",
        "Ratios are MONAI's time by medgen's: above 1, medgen is faster. "
        "MONAI always predicts the whole image. Differences (the output's standard deviation is "
        "0.3 to 0.4) are to MONAI with the same tiles: for the brain, to MONAI on the brain's box.",
        "",
        "## Memory",
        "",
        "`estimate_memory_gb` against the growth of resident memory to its peak, GB.",
        "",
        "| image | settings | estimated | measured |",
        "|---|---|---|---|",
    ]
    for settings in (
        {"mode": "2d"},
        {"mode": "2d", "views": ("axial", "coronal", "sagittal"), "flips": True},
        {"mode": "3d", "tile": (64, 64, 64), "batch_size": 4},
        {"mode": "3d", "batch_size": 1},
    ):
        lines.append(memory_row(HEAD, settings))
        print(lines[-1], flush=True)
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
