"""What one reads of a training run: a log, warnings, a progress bar, TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from medgen.errors import InputError
from medgen.losses import mean_inside, soft_dice
from medgen.training.checkpoint import write_complete
from medgen.training.health import Finding

logger = logging.getLogger(__name__)


class Monitor:
    """Collects what each step reports and writes its mean every so often.

    Args:
        folder: Of the run.
        first: Step that comes next; later lines of an earlier log are dropped.
        steps: Steps in all.
        tensorboard: Also write TensorBoard events.
        progress: Show a bar if standard error is a terminal.
    """

    def __init__(
        self, folder: Path, first: int, steps: int, *, tensorboard: bool, progress: bool
    ) -> None:
        self.path = folder / "log.jsonl"
        self.last: dict[str, float] = {}
        self.warnings: list[dict[str, Any]] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._keep_lines(first)
        self._writer = _event_writer(folder, first) if tensorboard else None
        self._bar = _progress_bar(first, steps) if progress and sys.stderr.isatty() else None

    def _keep_lines(self, first: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first]
        self.warnings = [entry for entry in map(json.loads, kept) if "warning" in entry]
        text = "".join(line + "\n" for line in kept)
        write_complete(self.path, lambda draft: _write_text(draft, text))

    def add(self, values: Mapping[str, float]) -> None:
        """Values of one step, to be averaged."""
        for name, value in values.items():
            self._sums[name] += value
            self._counts[name] += 1

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            loss = next((v for name, v in self.last.items() if name.startswith("loss/")), math.nan)
            self._bar.update(self._bar.task_ids[0], completed=step, loss=loss)

    def flush(self, step: int, **extra: float) -> None:
        """Write the means since the last call, and ``extra`` as it is, as one line of the log."""
        values = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        values |= _speeds(values) | extra
        self.last |= values
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def warn(self, step: int, finding: Finding) -> None:
        """Say and log once for each kind what is wrong with the run, and the remedy."""
        if any(entry["warning"] == finding.kind for entry in self.warnings):
            return
        entry = {
            "step": step,
            "warning": finding.kind,
            "message": finding.message,
            "remedy": finding.remedy,
        }
        self.warnings.append(entry)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        logger.warning("step %d: %s. %s", step, finding.message, finding.remedy)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()


def _speeds(values: Mapping[str, float]) -> dict[str, float]:
    """Images per second of everything, of the network alone, and of the generator alone."""
    if "images" not in values:
        return {}
    images, network, waiting = values["images"], values["network_s"], values["waiting_s"]
    return {
        "images_per_s": images / (network + waiting),
        "network_images_per_s": images / network,
        "generator_images_per_s": images / values["drawing_s"],
        "waiting_fraction": waiting / (network + waiting),
    }


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file in one move."""
    write_complete(path, lambda draft: _write_text(draft, json.dumps(values, indent=2) + "\n"))


def _event_writer(folder: Path, first: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "tensorboard is switched on, but not installed",
            "Run `pip install 'medgen[tracking]'`, or set tensorboard to false.",
        ) from error
    return SummaryWriter(folder / "tensorboard", purge_step=first + 1)


def _progress_bar(first: int, steps: int) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    bar.add_task("training", total=steps, completed=first, loss=math.nan)
    return bar


def validate(method: Any, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """How well a method does on batches it is not trained on, by what it can do.

    Returns:
        Of a method that predicts: ``validation/restoration`` is the mean absolute error of
        ``restored`` inside the mask, in the image's unit; ``validation/dice`` the soft Dice of the
        probability with the simulated anomaly, 0..1. Of a restoration method with aligned targets:
        ``validation/mae`` and ``validation/psnr`` of its ``output`` inside the mask, in the
        images' scale (1 is the data range) and in decibels. Of a method with a ``validate`` of
        its own: what that returns.
    """
    sums: dict[str, float] = defaultdict(float)
    for batch in batches:
        if hasattr(method, "validate"):
            for name, value in method.validate(batch).items():
                sums[f"validation/{name}"] += value
            continue
        outputs = method.predict(batch["image"])
        if "restored" in outputs:
            error = (outputs["restored"] - batch["healthy"]).abs()
            sums["validation/restoration"] += float(mean_inside(error, batch["mask"]))
        if "output" in outputs and "mask" in batch:  # without one the target is another scan
            error = outputs["output"] - batch["target"]
            squared = float(mean_inside(error**2, batch["mask"]))
            sums["validation/mae"] += float(mean_inside(error.abs(), batch["mask"]))
            sums["validation/psnr"] -= 10 * math.log10(max(squared, 1e-10))
        if "log_odds" in outputs:
            found = torch.sigmoid(outputs["log_odds"]) * batch["mask"]
            sums["validation/dice"] += float(soft_dice(found, batch["anomaly"]))
    return {name: total / len(batches) for name, total in sums.items()}
