"""Images of a folder, and beside them what a trained generator makes of noise.

A small generator that learns from both can imitate a large one that took a GPU to train
(Aguinaldo et al., "Compressing GANs using Knowledge Distillation", 2019). Noise, condition and
image of the large one are known, so what there is to imitate has no end and no ambiguity.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn import functional as F

from medgen.errors import InputError
from medgen.image_sets import Images, ImagesConfig
from medgen.methods import build
from medgen.training.batches import Batch


class TaughtConfig(ImagesConfig):
    """Settings of a set of images with a teacher."""

    teacher: Path = Field(description="folder of the training run whose generator is imitated")


class Taught(Images):
    """A batch also holds ``teacher_latent`` ``(B, L)`` and ``teacher_image`` as large as images.

    The teacher's conditions are those of the batch, so the teacher must have learned the same
    conditions in the same order. Its larger images are averaged down.

    Raises:
        InputError: The teacher is no finished run of a generator with the same conditions; or as
            for :class:`medgen.image_sets.Images`.
    """

    Config: type[ImagesConfig] = TaughtConfig

    def __init__(self, config: TaughtConfig) -> None:
        super().__init__(config)
        self.seed = config.seed
        self.teacher = _teacher(config.teacher, self.condition_names)

    def batch(self, index: int) -> Batch:
        """Training batch number ``index``."""
        batch = super().batch(index)
        # A stream of its own: the images' order and turns use other seeds.
        generator = torch.Generator().manual_seed((self.seed + 1) * 1_000_003_001 + index)
        count = len(batch["image"])
        latent = torch.randn(count, *self.teacher.latent_shape, generator=generator)
        with torch.inference_mode():
            made = self.teacher.generate(latent, batch.get("condition"))["image"]
            made = F.interpolate(made, self.image_size, mode="area")
        # A clone is no inference tensor, so it can be trained on.
        return batch | {"teacher_latent": latent, "teacher_image": made.clone()}


def _teacher(folder: Path, condition_names: tuple[str, ...]) -> Any:
    """The averaged generator of a run, in evaluation mode."""
    try:
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder} holds no finished training run: {error}",
            "Set data.teacher to a folder that `medgen train -o` wrote.",
        ) from error
    method: Any = build(record["config"]["method"], record["config"]["config"])
    if not hasattr(method, "generate"):
        raise InputError(f"the run in {folder} trained {record['config']['method']!r}, "
                         "which makes no images")  # fmt: skip
    known = tuple(record.get("condition_names", ()))
    if known != tuple(condition_names):
        raise InputError(
            f"the teacher knows the conditions {', '.join(known) or 'none'}, the data have "
            f"{', '.join(condition_names) or 'none'}",
            "Name the same ones in the same order in data.conditions.",
        )
    for part in method.training_only:
        setattr(method, part, None)
    method.load_state_dict(weights)
    return method.eval()
