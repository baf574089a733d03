"""Pre-training: an encoder learns from images without labels, by one of four tasks.

``dae`` removes coarse noise, ``mae`` draws hidden patches, ``vae`` describes an image by few
numbers, ``contrastive`` finds two views of an image again (VICReg). What it is worth for telling
labels apart is measured by :mod:`medgen.tasks.probe`.

Here are settings that suit a folder of images; the training itself is that of every other method.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medgen.errors import InputError
from medgen.grouped_files import PICTURES, SetConfig

if TYPE_CHECKING:
    from medgen.training import TrainingConfig

Method = Literal["dae", "mae", "vae", "contrastive"]
# Name of each way to pre-train, and of the method that does it.
METHODS: dict[str, str] = {"dae": "dae", "mae": "mae", "vae": "vae", "contrastive": "selfsup"}
EDGE = 16  # every network here can take multiples of this
SMALLEST = 32  # pixels
VIEW = 96  # pixels of a view, for `contrastive`
LATENT = 128


@dataclass(frozen=True)
class Where:
    """How a folder of images is read and split.

    Attributes:
        conditions: Name of each condition and its subfolder; None: every subfolder is one. The
            images of all are learned from, and their conditions are not told.
        group_pattern: Regular expression whose first (...) is the patient in a file's name.
        exclude: Files to leave out, by name without ending.
        held_out: Part of the images that is never trained on.
    """

    conditions: dict[str, str] | None = None
    group_pattern: str | None = None
    exclude: tuple[str, ...] = ()
    held_out: float = 0.25

    def values(self, folder: Path) -> dict[str, Any]:
        """The keys of a training configuration's ``data`` that say the same."""
        return {
            "folder": str(folder),
            "conditions": self.conditions,
            "group_pattern": self.group_pattern,
            "exclude": list(self.exclude),
            "validation_fraction": self.held_out,
        }


def pretraining_config(
    folder: Path,
    name: str = "mae",
    *,
    where: Where | None = None,
    spatial_dims: Literal[2, 3] = 2,
    size: int | None = None,
    symmetries: str = "none",
    steps: int = 3000,
    minutes: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    changes: Sequence[str] = (),
) -> TrainingConfig:
    """The configuration of a pre-training.

    Args:
        folder: Of images, with a subfolder per condition or without.
        name: One of :data:`METHODS`.
        where: How the folder is read and split.
        spatial_dims: 2 for pictures and slices of volumes, 3 for volumes.
        size: Edge of the images in pixels; None: as long as the first image, to a multiple of 16.
        symmetries: ``none``, ``mirror`` or ``dihedral``, of the training images.
        steps: Of training.
        minutes: Training also ends after so long.
        batch_size: Images per step.
        seed: Of everything random.
        changes: ``key=value`` with a dotted key, put in last.

    Raises:
        InputError: Unknown name, or a folder, size or setting that does not fit.
        LeakageError: A group or image would be trained on and held out.
    """
    from medgen.training.config import checked_config

    if name not in METHODS:
        raise InputError(
            f"--method must be one of {', '.join(METHODS)}, got {name!r}",
            "Any other method is trained with `medgen train CONFIG`.",
        )
    if name == "contrastive" and spatial_dims == 3:
        raise InputError("contrastive pre-training sees pictures or slices, not volumes",
                         "Choose --method mae, dae or vae for 3-D.")  # fmt: skip
    where = where or Where()
    first = _first_image(folder, where)
    channels, edge, picture = _looked_at(first, spatial_dims)
    if name == "contrastive" and not picture:
        raise InputError(f"contrastive pre-training takes pictures, but {first.name} is none",
                         "Choose --method mae, dae or vae.")  # fmt: skip
    edge = max(SMALLEST, EDGE * round(edge / EDGE)) if size is None else size
    if edge % EDGE or edge < SMALLEST:
        raise InputError(f"--size must be a multiple of {EDGE} from {SMALLEST} on, got {edge}")
    values: dict[str, Any] = {
        "name": f"{name}-pretraining",
        "seed": seed,
        "method": METHODS[name],
        "config": _method_settings(name, spatial_dims, channels, edge),
        "data": {
            **where.values(folder), "size": edge, "symmetries": symmetries,
            **_data_settings(name, picture, edge),
        },
        "steps": steps,
        "minutes": minutes,
        "batch_size": batch_size,
        "warmup_steps": min(100, steps // 10),
        "ema_decay": 0.995,
        "grad_clip": 10.0,
    }  # fmt: skip
    return checked_config(values, f"pre-training by {name}", changes)


def _first_image(folder: Path, where: Where) -> Path:
    """The first file; all are looked for, so that what is wrong with the split is said now."""
    from medgen.tasks.labelled_images import found_images

    settings = where.values(folder) | {"folder": folder, "exclude": where.exclude}
    train, _, _ = found_images(SetConfig.model_validate(settings))
    return train[0].path


def _looked_at(path: Path, spatial_dims: int) -> tuple[int, int, bool]:
    """Channels and longest edge of an image, and whether it is a picture of 8 bits."""
    from medgen.io import read

    volume = read(path)
    if volume.spatial_dims < spatial_dims:
        raise InputError(f"{path.name} is 2-D, but volumes were asked for")
    shape = volume.geometry.shape[:spatial_dims]
    return len(volume.voxels), max(shape), path.name.lower().endswith(PICTURES)


def _method_settings(name: str, dims: int, channels: int, edge: int) -> dict[str, Any]:
    if name == "contrastive":
        return {"view_size": min(VIEW, edge)}
    shared: dict[str, Any] = {"spatial_dims": dims, "channels": channels}
    if name == "vae":
        shared |= {"latent": "dense", "latent_channels": LATENT, "image_size": [edge] * dims}
    return shared


def _data_settings(name: str, picture: bool, edge: int) -> dict[str, Any]:
    if name == "contrastive":
        return {"kind": "images", "channels": 3, "convert": True}
    # Brightness and colours of a picture mean something; those of MR do not.
    how = {"normalisation": "eight_bits", "longest_side": edge} if picture else {}
    preparation = {"spacing_mm": None, "margin_mm": 0, "brain": "none", **how}
    return {"kind": "normals", "anomalies": {}, "preparation": preparation}
