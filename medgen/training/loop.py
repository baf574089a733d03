"""The training loop. It knows batches and named losses, but no method and no kind of data.

Every step draws its batch and its random numbers from the run's seed and the step's number, so a
run that was interrupted and resumed ends bit for bit where an uninterrupted one does (on the same
machine with the same number of threads; GPU kernels may add in another order).
"""

from __future__ import annotations

import copy
import logging
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
from torch import Tensor, nn
from torch.optim import Optimizer

from medgen.devices import resolve_device
from medgen.errors import InputError, MedgenError
from medgen.run_record import versions
from medgen.training.batches import Batch, batches, build_source, can_sample, in_words
from medgen.training.build import build_method
from medgen.training.checkpoint import (
    Position,
    load_checkpoint,
    plain,
    read_position,
    save_checkpoint,
    write_complete,
)
from medgen.training.config import CHANGEABLE, TrainingConfig
from medgen.training.health import REMEDIES, Finding
from medgen.training.monitor import Monitor, validate, write_json
from medgen.training.pictures import save_grid
from medgen.training.samples import Samples

CHECKPOINT = "checkpoint.safetensors"
WEIGHTS = "weights.safetensors"
# All that a run leaves in its folder; nothing else is ever removed from it.
FILES = (CHECKPOINT, WEIGHTS, "training.json", "log.jsonl", "run.json")
FOLDERS = ("images", "tensorboard")
# Steps after which a GPU's losses and gradients are fetched and checked. Fetching waits for the
# GPU, which small networks would feel at every step.
FETCH_EVERY = 10

Item = TypeVar("Item")
logger = logging.getLogger(__name__)
ZERO = torch.zeros(())


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        folder: Holds ``weights.safetensors`` (the running average), ``training.json``,
            ``log.jsonl``, ``checkpoint.safetensors`` and ``images/``.
        step: Finished steps.
        finished: False if it was stopped early and can be resumed.
        metrics: Last values of losses, speeds and validation.
        warnings: What the monitors found: ``step``, ``warning`` (its kind), ``message`` and
            ``remedy`` of each; see :mod:`medgen.training.health`.
    """

    folder: Path
    step: int
    finished: bool
    metrics: dict[str, float] = field(default_factory=dict)
    warnings: list[dict[str, Any]] = field(default_factory=list)


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
        _allow_fast_numbers(config, device)
        method = build_method(config, resume=resume)
        run = _Run(config, method, output, start, device)
        if hasattr(run.source, "facts"):
            logger.info("Data: %s", in_words(run.source.facts))
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
        self.average = _averaged(method)
        current = dict(method.named_parameters())
        names = [name for name, _ in self.average.named_parameters()]
        self.weights = list(self.average.parameters()), [current[name] for name in names]
        self.rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        self.fetch_every = FETCH_EVERY if kind == "cuda" else 1
        self.waiting: list[tuple[int, dict[str, Any]]] = []  # values that are still on the device
        self.samples = Samples(method, self.source, config.seed, self.fabric.to_device)

    def go(self, monitor: Monitor, max_minutes: float | None) -> TrainingResult:
        """Train until the end, or until this call's time is over."""
        config, began, earlier = self.config, time.perf_counter(), self.seconds
        held_out = self.held_out()
        self.samples.save_real(self.output / "images" / "real.png")
        stream = batches(self.source, self.step, config.steps, config.workers)
        while self.progress() < 1:
            waited = time.perf_counter()
            batch, drawing = next(stream)
            worked = time.perf_counter()
            values = self.advance(self.fabric.to_device(batch))
            self.step += 1
            self.waiting.append((self.step, values))
            if self.step % self.fetch_every == 0:
                self.fetch(monitor)
            now = time.perf_counter()
            monitor.add(
                {
                    "images": len(batch["image"]),
                    "waiting_s": worked - waited,
                    "drawing_s": drawing,
                    "network_s": now - worked,
                }
            )
            self.seconds = earlier + now - began
            monitor.advance(self.step)
            over = max_minutes is not None and now - began >= 60 * max_minutes
            last = over or self.progress() >= 1
            shows = last or self.step % config.image_every == 0
            saves = last or self.step % config.checkpoint_every == 0
            if shows or saves or self.step % config.log_every == 0:
                self.fetch(monitor)
            if shows:
                monitor.flush(self.step, **self.validate(held_out, monitor))
            elif self.step % config.log_every == 0:
                monitor.flush(self.step)
            if saves:
                self.save(monitor)
            if over:
                break
        return self.finish(monitor)

    def advance(self, batch: Batch) -> dict[str, Tensor | float]:
        """One step of training; returns losses, their parts and the gradients' norms.

        Tensors among them are left where they are: see :meth:`fetch`.
        """
        torch.manual_seed(_step_seed(self.config.seed, self.step))
        self.method.train()
        values: dict[str, Tensor | float] = {}
        for name, loss, parts in _within(self.fabric.autocast, self.method.losses(batch)):
            optimizer = self.optimizers[name]
            self.set_rate(name)
            values |= {f"loss/{name}": loss.detach()}
            values |= {f"part/{name}/{part}": value for part, value in parts.items()}
            optimizer.zero_grad()
            self.fabric.backward(loss)
            values[f"gradient/{name}"] = self.clip_gradient(optimizer)
            values[f"rate/{name}"] = self.rate(name)
            optimizer.step()
        self.update_average()
        return values

    def clip_gradient(self, optimizer: Optimizer) -> Tensor:
        """Norm of the gradient of an optimiser's weights, before it is clipped if that is asked."""
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        if self.config.grad_clip is not None:
            return nn.utils.clip_grad_norm_(weights, self.config.grad_clip)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if not gradients:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))

    def fetch(self, monitor: Monitor) -> None:
        """Bring the values of the last steps from the device at once; check and monitor them."""
        waiting, self.waiting = self.waiting, []
        for step, values in zip(
            (step for step, _ in waiting), _on_cpu([v for _, v in waiting]), strict=True
        ):
            self.check_finite(values, step, monitor)
            monitor.add(values)
            for finding in self.samples.observe(values):
                monitor.warn(step, finding)

    @torch.no_grad()
    def update_average(self) -> None:
        """Take the new weights into the running average; buffers are copied.

        The decay starts low, so that the random first weights are soon forgotten.
        """
        warm = (1 + self.step) / (10 + self.step) if self.step else 0.0
        decay = min(self.config.ema_decay, warm)
        averages, weights = self.weights
        if averages:
            torch._foreach_lerp_(averages, weights, 1 - decay)
        current = dict(self.method.named_buffers())
        for name, average in self.average.named_buffers():
            average.copy_(current[name], non_blocking=True)

    def check_finite(self, values: Mapping[str, float], step: int, monitor: Monitor) -> None:
        """Stop before a number that is not finite gets into a checkpoint."""
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if not wrong:
            return
        checkpoint, kept = self.output / CHECKPOINT, ""
        if checkpoint.exists():
            kept = f"The checkpoint of step {read_position(checkpoint).step} is kept. "
        message = f"{wrong[0]} is not finite"
        monitor.warn(step, Finding("not_finite", message))
        raise MedgenError(
            f"training step {step}: {message} "
            f"({', '.join(f'{name} {value:.4g}' for name, value in values.items())})",
            f"{kept}{REMEDIES['not_finite']}",
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

    def validate(self, held_out: list[Batch], monitor: Monitor) -> dict[str, float]:
        """Measure the averaged network and draw what it predicts, or images it makes."""
        picture = self.output / "images" / f"step-{self.step:07d}.png"
        with torch.inference_mode():
            if can_sample(self.average):
                self.samples.save(picture, self.average)
                values, findings = self.samples.look(self.average, self.step)
                for finding in findings:
                    monitor.warn(self.step, finding)
                return values
            if hasattr(self.average, "predict"):
                outputs = self.average.predict(held_out[0]["image"])
                save_grid(picture, held_out[0], outputs, self.method.input_slices)
            return validate(self.average, held_out)

    def save(self, monitor: Monitor) -> None:
        """Write a checkpoint, unless the last step has spoilt the weights."""
        weights = [
            w for w in self.method.parameters() if w.numel()
        ]  # of no condition there is none
        largest = torch.stack([w.detach().abs().max() for w in weights] or [ZERO])
        self.check_finite({"largest weight": float(largest.sum())}, self.step, monitor)
        position = Position(self.step, self.seconds, self.config.model_dump(mode="json"))
        path = self.output / CHECKPOINT
        save_checkpoint(path, position, self.method, self.average, self.optimizers)

    def finish(self, monitor: Monitor) -> TrainingResult:
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
            "metrics": monitor.last,
            "warnings": monitor.warnings,
            **self.samples.names(),
            "source": getattr(self.source, "facts", {}),
            "versions": versions(),
            "config": self.config.model_dump(mode="json"),
        }
        write_json(self.output / "training.json", record)
        return TrainingResult(
            self.output, self.step, finished, dict(monitor.last), list(monitor.warnings)
        )


def _averaged(method: Any) -> Any:
    """A copy of a method for the running average of its weights.

    Parts that only training needs are left out of a method that samples or predicts.
    """
    average = copy.deepcopy(method).requires_grad_(False).eval()
    if can_sample(method) or hasattr(method, "predict"):
        for part in getattr(method, "training_only", ()):
            setattr(average, part, None)
    return average


def _on_cpu(steps: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Values of several steps as numbers, with one transfer for all."""
    tensors = [v.detach().float() for step in steps for v in step.values() if torch.is_tensor(v)]
    if not tensors:
        return steps
    device = max((tensor.device for tensor in tensors), key=lambda found: found.type != "cpu")
    numbers = iter(torch.stack([tensor.to(device).reshape(()) for tensor in tensors]).tolist())
    return [
        {name: next(numbers) if torch.is_tensor(v) else float(v) for name, v in step.items()}
        for step in steps
    ]


def _allow_fast_numbers(config: TrainingConfig, device: str) -> None:
    """On a GPU, mixed precision also means TensorFloat-32.

    Not cuDNN's search for the fastest convolutions: of the many shapes of a StyleGAN2 with its
    penalties it took most of a minute before the first step.
    """
    if device.startswith("cuda") and config.precision == "bf16-mixed":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


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
