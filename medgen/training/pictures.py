"""Picture grids of a training run: predictions beside their truth, or samples of each condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medgen.training.checkpoint import write_complete

GRID_ROWS = 8
CAPTION_HEIGHT = 14  # pixels
SMALLEST_PICTURE = 96  # pixels; smaller images are enlarged, so that captions fit
# Pictures that share one grey scale.
SAME_UNIT = {"image", "healthy", "restored", "target", "output"}
# Colours of labels 1, 2, ... (the ten of Tableau), again from the start if there are more.
LABEL_COLOURS = np.array(
    [
        (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
        (140, 86, 75), (227, 119, 194), (127, 127, 127), (188, 189, 34), (23, 190, 207),
    ],
    dtype=np.uint8,
)  # fmt: skip


def save_grid(
    path: Path, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor], input_slices: int
) -> None:
    """Draw rows of one batch: input, truth and predictions side by side.

    Volumes are shown by their middle slice along the last axis; arrays (right, front, up) are
    drawn with the front at the top. Three channels are shown in colour, others by their mean. Of
    the input of a restoration only the image is shown, not the hole or the wanted contrast.
    """
    image = _middle(batch["image"], input_slices)
    columns = {
        "image": image[:, : batch["target"].shape[1]] if "target" in batch else image,
        **{name: batch[name] for name in ("healthy", "anomaly", "target") if name in batch},
        **{name: value for name, value in outputs.items() if name != "log_odds"},
    }
    if "log_odds" in outputs:
        columns["probability"] = torch.sigmoid(outputs["log_odds"])
    tiles = [_pictures(name, value, columns["image"]) for name, value in columns.items()]
    grid = np.concatenate([np.concatenate(row, axis=1) for row in zip(*tiles, strict=True)])
    _save(path, [(tuple(columns), grid)])


def save_samples(
    path: Path, outputs: Mapping[str, Tensor], rows: Sequence[str], *, y_down: bool
) -> None:
    """Draw images ``(rows * columns, C, *spatial)`` in -1..1, and labels right of each, if any.

    Args:
        path: Where to write a PNG.
        outputs: ``image`` and perhaps ``labels``.
        rows: A caption for every row.
        y_down: Whether the second axis runs downwards in an upright picture.
    """
    image = outputs["image"].detach().float().cpu()
    if image.shape[1] not in (1, 3):
        image = image[:, :1]  # the others are no picture for the eye
    tiles = _upright(((image + 1) / 2).clamp(0, 1), y_down)
    if "labels" in outputs:
        labels = _flat(outputs["labels"].detach().cpu())[:, 0].numpy()
        colours = LABEL_COLOURS[(labels - 1) % len(LABEL_COLOURS)] * (labels > 0)[..., None]
        shown = torch.from_numpy(colours.astype(np.uint8)).permute(0, 3, 1, 2) / 255
        maps = _upright(shown, y_down)
        tiles = [np.concatenate(pair, axis=1) for pair in zip(tiles, maps, strict=True)]
    count = len(tiles) // len(rows)
    lines = [
        ((name,), np.concatenate(tiles[number * count : (number + 1) * count], axis=1))
        for number, name in enumerate(rows)
    ]
    _save(path, lines)


def _save(path: Path, lines: Sequence[tuple[tuple[str, ...], NDArray[np.uint8]]]) -> None:
    """Stack strips of pictures, each below its captions."""
    from PIL import Image, ImageDraw

    height = sum(CAPTION_HEIGHT * any(names) + len(strip) for names, strip in lines)
    grid = Image.new("RGB", (lines[0][1].shape[1], height))
    top = 0
    for names, strip in lines:
        for number, name in enumerate(names):
            left = number * grid.width // len(names) + 2
            ImageDraw.Draw(grid).text((left, top + 1), name, fill="white")
        top += CAPTION_HEIGHT * any(names)
        grid.paste(Image.fromarray(strip), (0, top))
        top += len(strip)
    write_complete(path, lambda draft: grid.save(draft, format="png"))


def _middle(image: Tensor, input_slices: int) -> Tensor:
    """The channels of the middle one of several input slices."""
    channels = image.shape[1] // input_slices
    first = channels * (input_slices // 2)
    return image[:, first : first + channels]


def _pictures(name: str, images: Tensor, reference: Tensor) -> list[NDArray[np.uint8]]:
    """Pictures of the first images ``(B, C, *spatial)`` of a batch, front at the top."""
    scale = reference if name in SAME_UNIT else images
    low, high = float(scale.min()), float(scale.max())
    if name in {"anomaly", "probability"}:
        low, high = 0.0, 1.0
    shown = images[:GRID_ROWS].detach().float().cpu()
    if shown.shape[1] != 3:
        shown = shown.mean(1, keepdim=True)
    return _upright(((shown - low) / max(high - low, 1e-6)).clamp(0, 1), y_down=False)


def _flat(images: Tensor) -> Tensor:
    """Volumes by their middle slice along the last axis; pictures as they are."""
    return images[..., images.shape[-1] // 2] if images.ndim == 5 else images


def _upright(images: Tensor, y_down: bool) -> list[Any]:
    """RGB pictures ``(height, width, 3)`` uint8 of ``(B, 1 or 3, *spatial)`` in 0..1."""
    shown = _flat(images).expand(-1, 3, -1, -1).permute(0, 3, 2, 1)
    shown = shown if y_down else shown.flip(1)
    zoom = -(-SMALLEST_PICTURE // shown.shape[2])
    shown = shown.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    return list((shown * 255).round().to(torch.uint8).numpy())
