"""The training loop. It knows batches and named losses, but no method and no kind of data.

Every step draws its batch and its random numbers from the run's seed and the step's number, so a
run that was interrupted and resumed ends bit for bit where an uninterrupted one does (on the same
machine with the same number of threads; GPU kernels may add in another order).
"""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from medgen.devices import resolve_device
from medgen.errors import InputError, MedgenError
from medgen.methods import method_class
from medgen.run_record import versions
from medgen.training.batches import Batch, batches, build_source
from medgen.training.checkpoint import (
    Position,
    load_checkpoint,
    plain,
    read_position,
    save_checkpoint,
    write_complete,
)
from medgen.training.config import CHANGEABLE, TrainingConfig, validated
from medgen.training.monitor import Monitor, save_grid, validate, write_json

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
# All that a run leaves in its folder; nothing else is ever removed from it.
FILES = (CHECKPOINT, WEIGHTS, "training.json", "log.jsonl", "run.json")
FOLDERS = ("images", "tensorboard")

Item = TypeVar("Item")


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        folder: Holds ``weights.safetensors`` (the running average), ``training.json``,
            ``log.jsonl``, ``checkpoint.safetensors`` and ``images/``.
        step: Finished steps.
        finished: False if it was stopped early and can be resumed.
        metrics: Last values of losses, speeds and validation.
    """

    folder: Path
    step: int
    finished: bool
    metrics: dict[str, float] = field(default_factory=dict)


def train(
    config: TrainingConfig,
    output: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    max_minutes: float | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> TrainingResult:
    """Train a method.

    Args:
        config: What to train, on what, and for how long.
        output: Folder of the run.
        resume: Go on from the checkpoint in ``output``.
        overwrite: Replace an earlier run in ``output``.
        max_minutes: Stop this call after so long, with a checkpoint to resume from. The schedule
            does not change: resuming gives what a run without the stop would have given.
        device: Where to compute: auto, cpu, cuda, cuda:N or mps.
        progress: Show a bar if standard error is a terminal.

    Raises:
        InputError: Settings, data, device and folder do not fit together.
        MedgenError: A loss or gradient became infinite or not a number; the last checkpoint stays.
    """
    device = resolve_device(device)
    if config.precision != "32-true" and not device.startswith("cuda"):
        raise InputError(f"precision {config.precision} needs a CUDA device, got {device}")
    start = _starting_point(config, output, resume=resume, overwrite=overwrite)
    with _threads(config.threads):
        torch.manual_seed(config.seed)
        cls = method_class(config.method)
        method = cls(validated(cls.Config, config.config, f"config of {config.method}"))
        if not method.state_dict():
            raise InputError(f"method {config.method!r} has nothing to train")
        run = _Run(config, method, output, start, device)
        _prepare_folder(output, overwrite)
        if resume:
            load_checkpoint(output / CHECKPOINT, method, run.average, run.optimizers)
        with Monitor(
            output,
            start.step,
            config.steps,
            tensorboard=config.tensorboard,
            progress=progress,
        ) as monitor:
            return run.go(monitor, max_minutes)


class _Run:
    """One run: networks, their running average, optimisers, data and where it has come to."""

    def __init__(
        self, config: TrainingConfig, method: Any, output: Path, start: Position, device: str
    ) -> None:
        self.config, self.method, self.output = config, method, output
        self.step, self.seconds = start.step, start.seconds
        self.source = build_source(config, method)
        self.optimizers: dict[str, Optimizer] = method.optimizers()
        kind, _, number = device.partition(":")
        self.fabric = Fabric(
            accelerator=kind,
            devices=[int(number or 0)] if kind == "cuda" else 1,
            precision=config.precision,
        )
        self.fabric.setup(method, *self.optimizers.values())
        self.average = copy.deepcopy(method).requires_grad_(False).eval()
        self.rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }

    def go(self, monitor: Monitor, max_minutes: float | None) -> TrainingResult:
        """Train until the end, or until this call's time is over."""
        config, began, earlier = self.config, time.perf_counter(), self.seconds
        held_out = self.held_out()
        stream = batches(self.source, self.step, config.steps, config.workers)
        while self.progress() < 1:
            waited = time.perf_counter()
            batch, drawing = next(stream)
            worked = time.perf_counter()
            monitor.add(self.advance(self.fabric.to_device(batch)))
            now = time.perf_counter()
            monitor.add(
                {
                    "images": len(batch["image"]),
                    "waiting_s": worked - waited,
                    "drawing_s": drawing,
                    "network_s": now - worked,
                }
            )
            self.step, self.seconds = self.step + 1, earlier + now - began
            monitor.advance(self.step)
            over = max_minutes is not None and now - began >= 60 * max_minutes
            last = over or self.progress() >= 1
            if last or self.step % config.image_every == 0:
                monitor.flush(self.step, **self.validate(held_out))
            elif self.step % config.log_every == 0:
                monitor.flush(self.step)
            if last or self.step % config.checkpoint_every == 0:
                self.save()
            if over:
                break
        return self.finish(monitor.last)

    def advance(self, batch: Batch) -> dict[str, float]:
        """One step of training; returns losses, their parts and the gradients' norms."""
        torch.manual_seed(_step_seed(self.config.seed, self.step))
        self.method.train()
        values: dict[str, float] = {}
        for name, loss, parts in _within(self.fabric.autocast, self.method.losses(batch)):
            optimizer = self.optimizers[name]
            self.set_rate(name)
            values |= {f"loss/{name}": float(loss.detach())}
            values |= {f"part/{name}/{part}": float(value) for part, value in parts.items()}
            self.check_finite(values, self.step + 1)
            optimizer.zero_grad()
            self.fabric.backward(loss)
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            norm = nn.utils.clip_grad_norm_(weights, self.config.grad_clip or math.inf)
            values |= {f"gradient/{name}": float(norm), f"rate/{name}": self.rate(name)}
            self.check_finite(values, self.step + 1)
            optimizer.step()
        self.update_average()
        return values

    @torch.no_grad()
    def update_average(self) -> None:
        """Take the new weights into the running average; buffers are copied.

        The decay starts low, so that the random first weights are soon forgotten.
        """
        warm = (1 + self.step) / (10 + self.step) if self.step else 0.0
        decay = min(self.config.ema_decay, warm)
        pairs = zip(self.average.parameters(), self.method.parameters(), strict=True)
        for average, current in pairs:
            average.lerp_(current, 1 - decay)
        for average, current in zip(self.average.buffers(), self.method.buffers(), strict=True):
            average.copy_(current)

    def check_finite(self, values: Mapping[str, float], step: int) -> None:
        """Stop before a number that is not finite gets into the weights or a checkpoint."""
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if not wrong:
            return
        checkpoint, kept = self.output / CHECKPOINT, ""
        if checkpoint.exists():
            kept = f"The checkpoint of step {read_position(checkpoint).step} is kept. "
        raise MedgenError(
            f"training step {step}: {', '.join(wrong)} is not finite "
            f"({', '.join(f'{name} {value:.4g}' for name, value in values.items())})",
            f"{kept}Start again with a lower learning rate or with grad_clip.",
        )

    def progress(self) -> float:
        """Finished part of the run, 0..1."""
        steps = self.step / self.config.steps
        minutes = self.config.minutes
        return steps if minutes is None else max(steps, self.seconds / 60 / minutes)

    def set_rate(self, name: str) -> None:
        """Give an optimiser the learning rate of the coming step."""
        factor = 1.0
        if self.config.schedule == "cosine":
            factor = (1 + math.cos(math.pi * self.progress())) / 2
        if self.step < self.config.warmup_steps:
            factor *= (self.step + 1) / self.config.warmup_steps
        optimizer = self.optimizers[name]
        for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
            group["lr"] = rate * factor

    def rate(self, name: str) -> float:
        """Learning rate of an optimiser's first group."""
        return float(self.optimizers[name].param_groups[0]["lr"])

    def held_out(self) -> list[Batch]:
        """The fixed batches that every validation uses."""
        found = [self.source.validation_batch(i) for i in range(self.config.validation_batches)]
        return [self.fabric.to_device(batch) for batch in found]

    def validate(self, held_out: list[Batch]) -> dict[str, float]:
        """Measure the averaged network and draw what it predicts."""
        with torch.inference_mode():
            outputs = self.average.predict(held_out[0]["image"])
            picture = self.output / "images" / f"step-{self.step:07d}.png"
            save_grid(picture, held_out[0], outputs, self.method.input_slices)
            return validate(self.average, held_out)

    def save(self) -> None:
        """Write a checkpoint, unless the last step has spoilt the weights."""
        largest = [float(w.detach().abs().max()) for w in self.method.parameters()]
        self.check_finite({"largest weight": sum(largest)}, self.step)
        position = Position(self.step, self.seconds, self.config.model_dump(mode="json"))
        path = self.output / CHECKPOINT
        save_checkpoint(path, position, self.method, self.average, self.optimizers)

    def finish(self, metrics: dict[str, float]) -> TrainingResult:
        """Write the averaged weights and the record of the run."""
        finished = self.progress() >= 1
        weights = plain(self.average.state_dict())
        write_complete(self.output / WEIGHTS, lambda draft: save_file(weights, draft))
        record = {
            "name": self.config.name,
            "finished": finished,
            "step": self.step,
            "seconds": round(self.seconds, 1),
            "seed": self.config.seed,
            "parameters": sum(p.numel() for p in self.method.parameters()),
            "device": str(self.fabric.device),
            "threads": torch.get_num_threads(),
            "metrics": metrics,
            "versions": versions(),
            "config": self.config.model_dump(mode="json"),
        }
        write_json(self.output / "training.json", record)
        return TrainingResult(self.output, self.step, finished, metrics)


def _starting_point(
    config: TrainingConfig, output: Path, *, resume: bool, overwrite: bool
) -> Position:
    """Where the run begins, after checking that it may."""
    values = config.model_dump(mode="json")
    if resume and overwrite:
        raise InputError("resume and overwrite exclude each other")
    if resume:
        position = read_position(output / CHECKPOINT)
        changed = [
            key
            for key in values
            if key not in CHANGEABLE and values[key] != position.config.get(key)
        ]
        if changed:
            raise InputError(
                f"the checkpoint in {output} was made with another {', '.join(changed)}",
                "Resume with the same configuration, or choose another output folder.",
            )
        return position
    occupied = output.is_file() or (output.is_dir() and any(output.iterdir()))
    if occupied and (output.is_file() or not overwrite):
        raise InputError(
            f"{output} exists already",
            "Choose another folder, go on with --resume, or replace the run with --overwrite.",
        )
    return Position(0, 0.0, values)


def _prepare_folder(output: Path, overwrite: bool) -> None:
    """Make the run's folder, empty of an earlier run, and see that it can be written."""
    try:
        if overwrite:
            _remove_earlier_run(output)
        (output / "images").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        msg = f"cannot write to {output}: {error.strerror or error}"
        raise InputError(msg, "Choose a folder you may write to with -o.") from error


def _remove_earlier_run(output: Path) -> None:
    for name in FILES:
        (output / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(output / name, ignore_errors=True)


def _step_seed(seed: int, step: int) -> int:
    """A seed for each step, unrelated to its neighbours'."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


def _within(
    context: Callable[[], AbstractContextManager[Any]], items: Iterator[Item]
) -> Iterator[Item]:
    """The same items; the context is entered while each is made, not while it is used."""
    while True:
        with context():
            item = next(items, None)
        if item is None:
            return
        yield item


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Compute with so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
