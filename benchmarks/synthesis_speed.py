"""Sampling and training of generators: medgen's loops against bare loops of the same networks.

In one process, runs alternating, the best of each counts. The bare training loop is what a script
would hold: batches that lie ready on the device, each loss backward, each optimiser's step, and the
running average of the weights; no logging, no checks, no checkpoints. medgen's draws its batches,
logs, measures gradients and watches for collapse. Its fixed costs (building, pictures, the last
checkpoint) cancel: a short run's time is taken from a long run's. Sampling is
`medgen.tasks.sampling.render`, as `medgen synthesize` calls it, up to arrays of 8 bits, against
blocks of the same size. On a CPU, time is processor time, which neighbours disturb least.

    python benchmarks/synthesis_speed.py --output benchmarks/results/synthesis_speed.md
    python benchmarks/synthesis_speed.py --device cuda --size 128 --output ...
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medgen.devices import resolve_device
from medgen.methods import build
from medgen.tasks.latents import Code, Sample, draw
from medgen.tasks.sampling import block_size, render
from medgen.training import TrainingConfig, train
from medgen.training.batches import build_source
from medgen.training.build import build_method

BATCH, TILES = 16, 64
METHODS: dict[str, dict[str, Any]] = {
    "dcgan": {"latent": 128},
    "stylegan2": {"augmentation": "diffaugment"},
}


def save_tiles(folder: Path, size: int) -> Path:
    """Colour pictures of smooth noise."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(TILES):
        coarse = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size)).save(folder / f"tile{number:03d}.png")
    return folder


def settings(method: str, size: int, tiles: Path, steps: int) -> TrainingConfig:
    """A run that draws and saves nothing before its end."""
    return TrainingConfig(
        name="speed", method=method, steps=steps, batch_size=BATCH, schedule="constant",
        config={"channels": 3, "image_size": (size, size), **METHODS[method]},
        data={"kind": "images", "folder": str(tiles), "conditions": {}, "size": size},
        log_every=50, image_every=10**6, checkpoint_every=10**6,
    )  # fmt: skip


class Meter:
    """Seconds and peak memory of a function on a device."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        self.clock = time.perf_counter if self.cuda else time.process_time

    def __call__(self, function: Callable[[], Any]) -> tuple[float, float]:
        """Seconds, and GB at the peak above what was in use before."""
        self._wait()
        before = self._begin()
        start = self.clock()
        function()
        self._wait()
        return self.clock() - start, self._peak() - before

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def _begin(self) -> float:
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 1e9
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far; Linux only
        return _resident("VmRSS")

    def _peak(self) -> float:
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else _resident("VmHWM")


def _resident(what: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e9


def bare_training(method: Any, batches: list[dict[str, torch.Tensor]], steps: int) -> None:
    """The same losses and optimisers, with the running average, and nothing else."""
    optimizers = method.optimizers()
    average = copy.deepcopy(method).requires_grad_(False)
    pairs = list(average.parameters()), list(method.parameters())
    method.train()
    for step in range(steps):
        for name, loss, _ in method.losses(batches[step % len(batches)]):
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
        with torch.no_grad():
            torch._foreach_lerp_(*pairs, 0.001)


def training_row(name: str, size: int, seconds: float, runs: int, device: str, meter: Meter) -> str:
    """Images per second of both loops."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tiles = save_tiles(folder / "tiles", size)

        def ours(count: int) -> tuple[float, float]:
            config = settings(name, size, tiles, count)
            out = folder / f"run{time.monotonic_ns()}"
            return meter(lambda: train(config, out, device=device, progress=False))

        config = settings(name, size, tiles, 1)
        source = build_source(config, build_method(config))
        batches = [
            {key: value.to(device) for key, value in source.batch(i).items()} for i in range(4)
        ]

        def theirs(count: int) -> tuple[float, float]:
            method = build_method(config).to(device)
            return meter(lambda: bare_training(method, batches, count))

        ours(2), theirs(2)  # warm
        steps = max(2, round(seconds / theirs(2)[0]))  # the difference takes so many seconds
        medgen, bare = [], []
        memory = [0.0, 0.0]
        for _ in range(runs):
            short, long = ours(steps), ours(3 * steps)
            medgen.append((long[0] - short[0]) / (2 * steps))
            first, last = theirs(steps), theirs(3 * steps)
            bare.append((last[0] - first[0]) / (2 * steps))
            memory = [max(memory[0], long[1]), max(memory[1], last[1])]
    per_second = [BATCH / min(times) for times in (bare, medgen)]
    return (
        f"| {name}, {size} x {size}, batch {BATCH} | {per_second[0]:.1f} | {per_second[1]:.1f} "
        f"| {per_second[1] / per_second[0]:.3f} | {memory[1]:.2f} | {memory[0]:.2f} |"
    )


def sampling_row(name: str, size: int, seconds: float, runs: int, device: str, meter: Meter) -> str:
    """Images per second of both ways to sample."""
    torch.manual_seed(0)
    config = {"channels": 3, "image_size": (size, size), **METHODS[name]}
    method: Any = build(name, config)
    for part in method.training_only:
        setattr(method, part, None)
    method.to(device).eval()
    block = block_size(method, device)
    total = block

    def samples() -> Iterator[Sample]:
        for index in range(total):
            code = Code(draw(method.latent_shape, 0, index))
            yield Sample(index, code, "speed", None, 0, 1.0, {})

    def ours() -> None:
        for made in render(method, samples(), device):
            for one in made:
                one.pixels()

    def theirs() -> None:
        with torch.inference_mode():
            for _ in range(total // block):
                latent = torch.randn(block, *method.latent_shape, device=device)
                image = method.generate(latent)["image"].clamp(-1, 1)
                ((image + 1) * 127.5).round().to(torch.uint8).cpu().numpy()

    ours(), theirs()
    total = block * max(1, round(seconds / meter(theirs)[0]))
    pairs = [(meter(theirs), meter(ours)) for _ in range(runs)]
    bare, medgen = (min(pair[k][0] for pair in pairs) for k in (0, 1))
    memory = [max(pair[k][1] for pair in pairs) for k in (0, 1)]
    return (
        f"| {name}, {size} x {size}, blocks of {block} | {total / bare:.1f} | {total / medgen:.1f} "
        f"| {bare / medgen:.3f} | {memory[0]:.2f} | {memory[1]:.2f} |"
    )


def main() -> None:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    device = resolve_device(options.device)
    if device == "cpu":
        torch.set_num_threads(1)
    meter = Meter(device)
    card = torch.cuda.get_device_name() if meter.cuda else platform.machine()
    arguments = " ".join(a for a in sys.argv[1:] if not a.endswith(".md") and a != "--output")
    header = ["| case | bare images/s | medgen images/s | ratio | bare GB | medgen GB |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    lines = [
        "# Sampling and training of generators against bare loops",
        "",
        f"`python benchmarks/synthesis_speed.py {arguments}`",
        "",
        f"{card}, {os.cpu_count()} cores, {torch.get_num_threads()} torch thread(s), load "
        f"{os.getloadavg()[0]:.1f} before the start; Python {platform.python_version()}, torch "
        f"{torch.__version__}. Best of {options.runs} alternating runs, seconds of "
        f"{'the clock' if meter.cuda else 'processor time'}. Above 1, medgen is faster. Memory: "
        "peak above what was in use before.",
        "",
        "## Training steps",
        "",
        *header,
    ]
    for name in METHODS:
        lines.append(training_row(name, options.size, options.seconds, options.runs, device, meter))
        print(lines[-1], flush=True)
    lines += ["", "## Sampling", "", *header]
    for name in METHODS:
        lines.append(sampling_row(name, options.size, options.seconds, options.runs, device, meter))
        print(lines[-1], flush=True)
    lines += [
        "",
        "The bare loops have their batches on the device and draw no latents one by one; medgen's "
        "latents are drawn image by image, so that image 7 of a seed is the same in every run.",
    ]
    if options.output is not None:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
