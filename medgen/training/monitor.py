"""What one sees of a training run: a log, a progress bar, picture grids, TensorBoard."""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.errors import InputError
from medgen.losses import mean_inside, soft_dice
from medgen.training.checkpoint import write_complete

GRID_ROWS = 8
CAPTION_HEIGHT = 14  # pixels
SMALLEST_PICTURE = 96  # pixels; smaller images are enlarged, so that captions fit
SAME_UNIT = {"image", "healthy", "restored"}  # pictures that share one grey scale


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
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._keep_lines(first)
        self._writer = _event_writer(folder, first) if tensorboard else None
        self._bar = _progress_bar(first, steps) if progress and sys.stderr.isatty() else None

    def _keep_lines(self, first: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= first]
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
    """How well a method predicts batches it is not trained on, by what it predicts.

    Returns:
        ``validation/restoration`` is the mean absolute error of ``restored`` inside the mask, in
        the image's unit; ``validation/dice`` the soft Dice of the probability with the simulated
        anomaly, 0..1.
    """
    sums: dict[str, float] = defaultdict(float)
    for batch in batches:
        outputs = method.predict(batch["image"])
        if "restored" in outputs:
            error = (outputs["restored"] - batch["healthy"]).abs()
            sums["validation/restoration"] += float(mean_inside(error, batch["mask"]))
        if "log_odds" in outputs:
            found = torch.sigmoid(outputs["log_odds"]) * batch["mask"]
            sums["validation/dice"] += float(soft_dice(found, batch["anomaly"]))
    return {name: total / len(batches) for name, total in sums.items()}


def save_grid(
    path: Path, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor], input_slices: int
) -> None:
    """Draw rows of one batch: input, truth and predictions side by side.

    Volumes are shown by their middle slice along the last axis; arrays (right, front, up) are
    drawn with the front at the top. Three channels are shown in colour, others by their mean.
    """
    from PIL import Image, ImageDraw

    columns = {
        "image": _middle(batch["image"], input_slices),
        **{name: batch[name] for name in ("healthy", "anomaly") if name in batch},
        **{name: value for name, value in outputs.items() if name != "log_odds"},
    }
    if "log_odds" in outputs:
        columns["probability"] = torch.sigmoid(outputs["log_odds"])
    tiles = {name: _pictures(name, value, columns["image"]) for name, value in columns.items()}
    rows = [np.concatenate(row, axis=1) for row in zip(*tiles.values(), strict=True)]
    grid = Image.new("RGB", (rows[0].shape[1], CAPTION_HEIGHT + sum(len(row) for row in rows)))
    grid.paste(Image.fromarray(np.concatenate(rows)), (0, CAPTION_HEIGHT))
    width = grid.width // len(tiles)
    for number, name in enumerate(tiles):
        ImageDraw.Draw(grid).text((number * width + 2, 1), name, fill="white")
    write_complete(path, lambda draft: grid.save(draft, format="png"))


def _middle(image: Tensor, input_slices: int) -> Tensor:
    """The channels of the middle one of several input slices."""
    channels = image.shape[1] // input_slices
    first = channels * (input_slices // 2)
    return image[:, first : first + channels]


def _pictures(name: str, images: Tensor, reference: Tensor) -> list[NDArray[np.uint8]]:
    """RGB pictures ``(height, width, 3)`` of the first images ``(B, C, *spatial)`` of a batch."""
    scale = reference if name in SAME_UNIT else images
    low, high = float(scale.min()), float(scale.max())
    if name in {"anomaly", "probability"}:
        low, high = 0.0, 1.0
    shown = images[:GRID_ROWS].detach().float().cpu()
    if shown.ndim == 5:
        shown = shown[..., shown.shape[-1] // 2]
    if shown.shape[1] != 3:
        shown = shown.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    grey = ((shown - low) / max(high - low, 1e-6)).clamp(0, 1)
    upright = torch.rot90(grey.permute(0, 2, 3, 1), 1, (1, 2))
    zoom = -(-SMALLEST_PICTURE // upright.shape[2])
    upright = upright.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    return list((upright * 255).round().to(torch.uint8).numpy())
