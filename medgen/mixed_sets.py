"""Several sets of images as one: what a feature extractor for all of them learns from.

Only the training part of each set's split is trained on, the same part that a generator of these
images has. Everything becomes three channels of one size; conditions and labels are left behind.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor
from torch.nn import functional as F

from medgen.config import Config
from medgen.errors import InputError
from medgen.image_sets import in_turn, to_signed

# Kinds of sets that can be mixed: module and class.
KINDS: dict[str, tuple[str, str]] = {
    "images": ("medgen.image_sets", "Images"),
    "annotated": ("medgen.annotated_sets", "AnnotatedImages"),
    "annotated_brain": ("medgen.annotated_brain", "AnnotatedBrain"),
}


class MixedConfig(Config):
    """Settings of a mixture of sets."""

    sets: dict[str, dict[str, Any]] = Field(
        min_length=1,
        description="each set's name, and its `kind` (images, annotated or annotated_brain), its "
        "settings, `weight`, its part of a batch (1 if left out), and, for images that are slow to "
        "draw, `pool`: draw so many batches once and mix them anew",
    )
    folder: Path | None = Field(None, description="folder that the sets' folders lie in")
    seed: int = 0
    spatial_dims: Literal[2] = Field(2, description="2: volumes are taken slice by slice")
    channels: Literal[3] = Field(3, description="3: grey images are repeated three times")
    batch_size: int = Field(32, ge=1, description="images per batch")
    size: int = Field(128, ge=32, description="side of the square that every image is resized to")


class Mixed:
    """A batch holds ``image`` ``(B, 3, size, size)`` in -1..1, set after set.

    Attributes:
        condition_names: Empty.
        label_names: Empty.

    Raises:
        InputError: A set is unknown, wrong or missing, or the batch is too small for all sets.
    """

    Config = MixedConfig
    condition_names: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    y_down = True

    def __init__(self, config: MixedConfig) -> None:
        self.config = config
        self.image_size, self.channels = (config.size, config.size), config.channels
        weights = [float(values.get("weight", 1)) for values in config.sets.values()]
        counts = _shares(weights, config.batch_size)
        self.sources = [
            _source(name, values, config, count)
            for (name, values), count in zip(config.sets.items(), counts, strict=True)
        ]
        known = [getattr(source, "facts", {}) for source in self.sources]
        self.facts: dict[str, Any] = {
            "images": sum(facts.get("images", 0) for facts in known),
            "sets": dict(zip(config.sets, known, strict=True)),
            **{
                key: sorted({h for facts in known for h in facts.get(key, ())})
                for key in ("hashed_ids", "hashed_files")
            },
        }

    def batch(self, index: int) -> dict[str, Tensor]:
        """Training batch number ``index``."""
        return self._joined([source.batch(index) for source in self.sources])

    def validation_batch(self, index: int) -> dict[str, Tensor]:
        """Batch number ``index`` of images that no set trains on."""
        return self._joined([source.validation_batch(index) for source in self.sources])

    def _joined(self, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        size = self.image_size
        images = [F.interpolate(b["image"], size, mode="bilinear", antialias=True) for b in batches]
        return {"image": torch.cat([image.expand(-1, 3, -1, -1) for image in images]).clamp(-1, 1)}


def _shares(weights: list[float], batch_size: int) -> list[int]:
    """How many images of a batch each set gives: by weight, none of them nothing."""
    if min(weights) <= 0:
        raise InputError(f"data.sets: weights must be above 0, got {weights}")
    total = sum(weights)
    ends = [round(batch_size * sum(weights[: n + 1]) / total) for n in range(len(weights))]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    if min(counts) < 1:
        msg = f"a batch of {batch_size} has no room for a set of {len(weights)}: {counts}"
        raise InputError(msg, "Raise batch_size or the smallest weight.")
    return counts


def _source(set_name: str, given: dict[str, Any], config: MixedConfig, count: int) -> Any:
    """The source of one set, giving ``count`` images a batch."""
    values = {key: value for key, value in given.items() if key not in {"kind", "weight", "pool"}}
    kind = given.get("kind")
    if kind not in KINDS:
        msg = f"data.sets.{set_name}.kind must be one of {', '.join(KINDS)}, got {kind!r}"
        raise InputError(msg)
    module, name = KINDS[kind]
    cls = getattr(import_module(module), name)
    for key in ("folder", "lesions"):
        if config.folder is not None and key in values:
            values[key] = config.folder / values[key]
    shared = {"seed": config.seed, "spatial_dims": config.spatial_dims, "batch_size": count}
    try:
        settings = cls.Config.model_validate({**shared, **values})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"data.sets.{set_name}.{where}: {problem['msg']}") from error
    source = cls(settings)
    return _Pool(source, int(given["pool"]), config.seed) if "pool" in given else source


class _Pool:
    """The first batches of a source, kept with 8 bits and mixed anew."""

    def __init__(self, source: Any, batches: int, seed: int) -> None:
        self.source, self.seed, self.facts = source, seed, getattr(source, "facts", {})
        drawn = [source.batch(number)["image"] for number in range(batches)]
        self.images = torch.cat([_bytes(images) for images in drawn])
        self.size = len(drawn[0])

    def batch(self, index: int) -> dict[str, Tensor]:
        chosen = in_turn(self.seed, index, self.size, len(self.images))
        return {"image": to_signed(self.images[chosen])}

    def validation_batch(self, index: int) -> dict[str, Tensor]:
        images: Tensor = self.source.validation_batch(index)["image"]
        return {"image": images}


def _bytes(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
