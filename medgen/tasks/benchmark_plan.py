"""What a benchmark of synthesis compares: methods, their settings, and a budget for all.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import Field

from medgen.config import Config
from medgen.errors import InputError

# What moves image and labels alike. Changes of colour would also change the label channels.
MOVES = ("translation", "cutout")
BATCH = 32
RUNS = "runs"


@dataclass(frozen=True)
class Contender:
    """A method of a suite.

    Attributes:
        title: For tables.
        method: Name in the registry, or of a variant.
        config: The method's settings, but channels, image size and labels, which the data give.
        joint: It makes the label map as channels of the image (:mod:`medgen.training.joint_labels`)
            and not from label maps of its own.
        batch_size: Images per step. All methods see equally many images, so one with larger
            batches takes fewer steps.
    """

    title: str
    method: str
    config: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = True
    batch_size: int = BATCH


_PAIR = {"augmentation": "diffaugment", "augment_with": MOVES}
# One pair of networks for all losses, as in the study. Batch normalisation would mix the images
# whose gradients are penalised.
_DCGAN = {**_PAIR, "architecture": "dcgan", "width": 48}
_WGAN_GP = {**_DCGAN, "critic_norm": "layer"}
_HINGE = {**_DCGAN, "spectral_norm": "critic", "critic_norm": "none"}
_STYLE = {"augmentation": "diffaugment", "operations": MOVES, "r1_gamma": 1.0}
_SPADE = {"augment": "diffaugment", "bank_size": 128, "critic_features": (32, 64, 128)}

SUITES: dict[str, dict[str, Contender]] = {
    # Skandarani, Jodoin and Lalande (J Imaging 9(3):69, 2023); WGAN with clipping and with a
    # gradient penalty, StyleGAN2 for the StyleGAN family.
    "skandarani": {
        "dcgan": Contender("DCGAN", "dcgan", _DCGAN),
        "lsgan": Contender("LSGAN", "lsgan", _DCGAN),
        "wgan": Contender("WGAN", "wgan", _DCGAN, batch_size=5 * BATCH),
        "wgan_gp": Contender("WGAN-GP", "wgan_gp", _WGAN_GP, batch_size=5 * BATCH),
        "hinge": Contender("Hinge GAN", "hinge", _HINGE),
        "spade": Contender("SPADE", "spade", _SPADE, joint=False),
        "stylegan2": Contender("StyleGAN2", "stylegan2", _STYLE),
    }
}

# Rows that need no training and stand in every table.
UNTRAINED, DEFORMED, REAL = "untrained", "deformed", "real"
BASELINES: dict[str, str] = {
    REAL: "real images only",
    DEFORMED: "real pairs, deformed",
    UNTRAINED: "untrained DCGAN",
}


class BenchmarkSettings(Config):
    """What a benchmark does with each method."""

    suite: str = Field("skandarani", description="the study to repeat")
    size: int = Field(64, ge=16, description="edge of the square images, in pixels")
    steps: int | None = Field(
        None, ge=1, description="steps of each training at 32 images; none: `minutes`"
    )
    minutes: float | None = Field(None, gt=0, description="minutes of each training")
    samples: int = Field(600, ge=20, description="synthetic pairs of each method")
    held_out: float = Field(
        0.3, gt=0, lt=1, description="part of the images, by patient, for testing only"
    )
    segmentation_steps: int = Field(600, ge=1, description="training steps of each U-Net")
    features: str = Field(
        "medgen-features", description="model package that images are compared by"
    )


class Cell(NamedTuple):
    """A method (or baseline) and a seed."""

    name: str
    seed: int

    @property
    def folder(self) -> str:
        """Below the benchmark's folder."""
        return f"{RUNS}/{self.name}-seed{self.seed}"


def planned(suite: str, methods: Sequence[str], seeds: int) -> list[Cell]:
    """All cells, baselines first; the first seed of everything before the second.

    Raises:
        InputError: Unknown suite or method, or less than one seed.
    """
    if suite not in SUITES:
        raise InputError(f"unknown suite {suite!r}", f"Known suites: {', '.join(SUITES)}.")
    known = SUITES[suite]
    unknown = [name for name in methods if name not in known]
    if unknown:
        raise InputError(
            f"the suite {suite} has no method {unknown[0]!r}", f"It has: {', '.join(known)}."
        )
    if seeds < 1:
        raise InputError(f"seeds must be at least 1, got {seeds}")
    names = [*BASELINES, *(name for name in known if name in methods or not methods)]
    return [Cell(name, seed) for seed in range(seeds) for name in names]


def budget(settings: BenchmarkSettings, contender: Contender) -> tuple[int, float | None]:
    """Steps and minutes of a training: the same number of images, or the same time, for all."""
    if settings.minutes is not None:
        return 10_000_000, settings.minutes
    return max(1, (settings.steps or 1) * BATCH // contender.batch_size), None
