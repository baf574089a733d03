"""What a method that samples shows while it trains: images of one fixed latent, and its health."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medgen.errors import InputError
from medgen.training.batches import Batch, Source, can_sample
from medgen.training.health import Finding, Health
from medgen.training.pictures import save_samples

COLUMNS = 8
ROWS = {2: 4, 3: 2}  # without conditions
# Images that the monitors compare; of volumes fewer, which are slow to make.
WATCHED = {2: 128, 3: 32}


class Samples:
    """Fixed latents, and images of them at every validation.

    The grid has a row for each condition; all rows show the same latents, so a row shows what
    the condition does. For a method that does not sample this holds nothing and does nothing.

    Args:
        method: Whose averaged copy will make the images.
        source: Gives the training images that the monitors compare with.
        seed: Of the latents.
        to_device: Moves tensors to where the method is.
    """

    def __init__(
        self, method: Any, source: Source, seed: int, to_device: Callable[[Any], Any]
    ) -> None:
        self.source, self.health, self.picture = source, None, False
        self.conditions = int(getattr(method, "conditions", 0))
        if not can_sample(method):
            return
        dims = method.spatial_dims
        # Points of a toy distribution are no picture.
        self.picture = max(method.image_size) > 1
        self.rows = self._row_names(dims)
        generator = torch.Generator().manual_seed(seed)
        latent = torch.randn(WATCHED[dims], *method.latent_shape, generator=generator)
        self.latent = to_device(latent)
        real = to_device(_first_images(source, WATCHED[dims]))
        self.real = {name: values[: len(latent)] for name, values in real.items()}
        condition = self.real.get("condition") if self.conditions else None
        self.health = Health(self.real["image"], condition)

    def _row_names(self, dims: int) -> list[str]:
        names = tuple(getattr(self.source, "condition_names", ()))
        return list(names) if self.conditions else [""] * ROWS[dims]

    def names(self) -> dict[str, Any]:
        """Names of the conditions and labels that the method makes, for the record."""
        if self.health is None:
            return {}
        conditions = getattr(self.source, "condition_names", ()) if self.conditions else ()
        labels = getattr(self.source, "label_names", ())
        return {"condition_names": list(conditions), "label_names": list(labels)}

    def observe(self, values: Mapping[str, float]) -> list[Finding]:
        """Show the monitors the values of one step."""
        return self.health.observe(values) if self.health else []

    def look(self, average: Any, step: int) -> tuple[dict[str, float], list[Finding]]:
        """Let the monitors compare generated images with training images."""
        if self.health is None:
            return {}, []
        count = len(self.real["image"])
        condition = self.real["condition"] if self.conditions else None
        made = self._made(average, self.latent[:count], condition)
        return self.health.look(made["image"], step)

    def save(self, path: Path, average: Any) -> None:
        """Draw the grid of the fixed latents."""
        if not self.picture:
            return
        rows = len(self.rows)
        latent, condition = self.latent[: rows * COLUMNS], None
        if self.conditions:
            latent = self.latent[:COLUMNS].repeat(rows, *[1] * (self.latent.ndim - 1))
            condition = torch.arange(rows, device=latent.device).repeat_interleave(COLUMNS)
        made = self._made(average, latent, condition)
        save_samples(path, made, self.rows, y_down=getattr(self.source, "y_down", True))

    def save_real(self, path: Path) -> None:
        """Draw training images as the critic gets to see them, to compare the grids with."""
        if not self.picture:
            return
        count = len(self.real["image"]) // COLUMNS * COLUMNS
        rows = max(1, min(len(self.rows), count // COLUMNS))
        shown = {
            name: self.real[name][: rows * COLUMNS]
            for name in ("image", "labels")
            if name in self.real
        }
        save_samples(path, shown, [""] * rows, y_down=getattr(self.source, "y_down", True))

    def _made(self, average: Any, latent: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
        """Images from noise, or of real label maps if the method can only paint those."""
        try:
            made: dict[str, Tensor] = average.generate(latent, condition)
        except InputError:
            if not hasattr(average, "paint"):
                raise
            places = torch.arange(len(latent), device=latent.device) % len(self.real["labels"])
            labels = self.real["labels"][places]
            made = {"image": average.paint(labels, latent, condition), "labels": labels}
        return made


def _first_images(source: Source, count: int) -> Batch:
    """The first training images of a source, none of them twice."""
    batches: list[Batch] = []
    while sum(len(batch["image"]) for batch in batches) < count:
        batches.append(source.batch(len(batches)))
        if len(batches) == 16:
            break
    joined = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
    # A small set comes round again, perhaps mirrored; then fewer are compared.
    known = getattr(source, "facts", {}).get("images")
    return {name: values[: min(count, known or count)] for name, values in joined.items()}
