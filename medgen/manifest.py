"""What a model package says about itself: ``medgen.json``, checked strictly and free of torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from medgen.config import Config
from medgen.errors import PackageError
from medgen.run_record import hash_file

FORMAT = 1
MANIFEST_NAME = "medgen.json"
Restored = Literal["inpaint", "super-resolve", "denoise", "translate"]
Task = Literal["detect-anomalies", "synthesize", "features"] | Restored
RESTORATION_TASKS: tuple[Restored, ...] = ("inpaint", "super-resolve", "denoise", "translate")
# One path component: no separators, no drive letters, no leading dot (so never "..").
_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NAME = re.compile(r"[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?")


class Contract(Config):
    """The scans a model accepts."""

    spatial_dims: tuple[Literal[2, 3], ...] = Field(description="Accepted dimensionalities.")
    channels: int = Field(default=1, ge=1, description="Channels of the scan; 1 is grey.")
    modalities: tuple[str, ...] = Field(default=("MR",), description="DICOM modality codes.")
    body_part: str = Field(default="BRAIN", description="DICOM body part examined.")
    spacing_mm: float | None = Field(default=None, description="Voxel size the network sees.")
    value_range: tuple[float, float] = Field(
        default=(0.0, 1.5), description="Range of the prepared image."
    )


class Extractor(Config):
    """The features that a model's training images were measured with."""

    name: str = Field(description="Name of the feature extractor's package.")
    sha256: str = Field(description="Hash that identifies it; distances of others differ.")


class Synthesis(Config):
    """The images a model makes."""

    condition_names: tuple[str, ...] = Field(
        default=(), description="`name` or `name:attribute`, by number; empty if it has none."
    )
    label_names: tuple[str, ...] = Field(
        default=(), description="What the label values 0, 1, ... stand for; empty without labels."
    )
    value_range: tuple[float, float] = Field(
        default=(0.0, 255.0), description="What -1 and 1 of the network mean in the files."
    )
    spacing_mm: tuple[float, ...] | None = Field(
        default=None, description="Pixel size along each axis, if it is known."
    )
    orientation: str | None = Field(
        default=None,
        pattern="^[LR][AP][SI]?$",
        description="Where its axes point; by default LP (columns, rows of a picture) or RAS.",
    )
    modality: str = Field(default="OT", description="DICOM modality code.")
    body_part: str = Field(default="", description="DICOM body part examined.")
    default_truncation: float = Field(default=1.0, ge=0, le=1)
    extractor: Extractor | None = Field(
        default=None, description="Set if the package holds features of its training images."
    )

    @field_validator("condition_names")
    @classmethod
    def _can_be_asked_for(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
            msg = f"names must differ and hold letters, digits, _, -, . and at most one : ({names})"
            raise ValueError(msg)
        return names

    @field_validator("value_range")
    @classmethod
    def _rises(cls, values: tuple[float, float]) -> tuple[float, float]:
        if not values[0] < values[1]:
            msg = f"the lower end of value_range must come first, got {values}"
            raise ValueError(msg)
        return values


class SpreadCalibration(Config):
    """What the predicted uncertainty of a restoration means, as measured."""

    level: float = Field(default=0.9, gt=0, lt=1, description="Errors to be covered, 0..1.")
    factor: float = Field(gt=0, description="Half width of that interval, in predicted spreads.")
    coverage: float = Field(ge=0, le=1, description="Errors covered, on data not fitted to.")
    data: str = Field(description="What both were measured on.")


class Restores(Config):
    """What a model that completes, refines or translates scans takes and gives."""

    sources: tuple[str, ...] = Field(
        default=("any",), min_length=1, description="Contrasts or modalities it takes, or any."
    )
    targets: tuple[str, ...] = Field(
        default=(),
        description="Translation: contrasts it makes, in the order of the planes that choose one; "
        "a single one needs no plane.",
    )
    scales: tuple[float, ...] = Field(
        default=(), description="Super-resolution: how many times finer its voxels may be."
    )
    noise: tuple[str, ...] = Field(default=(), description="Kinds of noise it was trained on.")
    units: str | None = Field(default=None, description="Fixed unit of its output, such as HU.")
    value_range: tuple[float, float] | None = Field(
        default=None, description="What 0 and 1 of its output mean in that unit."
    )
    paired: bool = Field(
        default=True, description="Whether it was trained on pairs of the same anatomy."
    )
    spread: SpreadCalibration | None = Field(
        default=None, description="Calibration of its uncertainty map; none: it is only relative."
    )

    @field_validator("targets", "sources")
    @classmethod
    def _can_be_asked_for(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
            msg = f"names must differ and hold letters, digits, _, - and . ({names})"
            raise ValueError(msg)
        return names

    @field_validator("value_range")
    @classmethod
    def _rises(cls, values: tuple[float, float] | None) -> tuple[float, float] | None:
        if values is not None and not values[0] < values[1]:
            msg = f"the lower end of value_range must come first, got {values}"
            raise ValueError(msg)
        return values


class TrainingData(Config):
    """One data set the weights were fitted on."""

    name: str
    licence: str
    cases: int = Field(ge=0)
    hashed_ids: tuple[str, ...] = Field(
        default=(), description="SHA-256 of each subject's identifier, to detect leakage."
    )


class Parent(Config):
    """The model that another calibration was made for, and the normal scans it was made on."""

    name: str
    version: str
    sha256: str = Field(description="Hash that identifies it.")
    controls: int = Field(ge=1, description="Normal scans of the calibration.")
    hashed_ids: tuple[str, ...] = Field(
        default=(),
        description="SHA-256 of each normal subject's identifier and file, to detect leakage.",
    )


class SharedWeights(Config):
    """A shipped package whose weights another one uses and does not repeat."""

    name: str
    sha256: str = Field(description="Hash of the weights.")


class Metric(Config):
    """One measured quality, with how the data behind it was split."""

    name: str
    value: float
    data: str
    split: str
    interval: tuple[float, float] | None = None


class Manifest(Config):
    """The contents of ``medgen.json``. Unknown keys are refused.

    ``config``, ``preparation``, ``inference`` and ``scoring`` are kept as plain values here and
    checked by the classes they belong to when the package is used, so that listing models needs
    neither torch nor scipy.
    """

    format: Literal[1] = Field(default=1, description="Version of this file format.")
    name: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    task: Task = "detect-anomalies"
    summary: str = Field(default="", description="One line for the table of models.")
    method: str = Field(description="Name in medgen's registry of methods.")
    config: dict[str, Any] = Field(default_factory=dict, description="The method's settings.")
    preparation: dict[str, Any] = Field(default_factory=dict)
    inference: dict[str, Any] = Field(default_factory=dict)
    scoring: dict[str, Any] = Field(default_factory=dict)
    contract: Contract = Field(
        default=Contract(spatial_dims=()), description="Images it takes; a generator takes none."
    )
    synthesis: Synthesis | None = Field(default=None, description="Images it makes.")
    restoration: Restores | None = Field(
        default=None, description="What it completes, refines or translates."
    )
    calibration: dict[str, Any] | None = Field(
        default=None, description="Threshold, its meaning, and what it was calibrated on."
    )
    parent: Parent | None = Field(
        default=None, description="Whose weights it has, if only the calibration is its own."
    )
    extractor: SharedWeights | None = Field(
        default=None, description="Whose features it looks through, if medgen ships them."
    )
    default_threshold: float = Field(
        default=0.5, description="Threshold in use while the model is not calibrated."
    )
    training_data: tuple[TrainingData, ...] = ()
    metrics: tuple[Metric, ...] = ()
    intended_use: str
    sha256: dict[str, str] = Field(
        default_factory=dict, description="Hash of every file beside this one."
    )

    @model_validator(mode="after")
    def _says_what_its_task_needs(self) -> Manifest:
        if (self.task == "synthesize") != (self.synthesis is not None):
            msg = "the key `synthesis` belongs to task synthesize, and only there"
            raise ValueError(msg)
        if (self.task in RESTORATION_TASKS) != (self.restoration is not None):
            msg = f"the key `restoration` belongs to tasks {', '.join(RESTORATION_TASKS)}, and "
            raise ValueError(f"{msg}only there")
        if self.task == "translate" and self.restoration and not self.restoration.targets:
            msg = "task translate needs `restoration.targets`: the contrasts it makes"
            raise ValueError(msg)
        if self.task != "synthesize" and not self.contract.spatial_dims:
            msg = f"task {self.task} needs `contract`: the images it takes"
            raise ValueError(msg)
        return self

    @field_validator("sha256")
    @classmethod
    def _names_stay_inside(cls, hashes: dict[str, str]) -> dict[str, str]:
        for name, digest in hashes.items():
            if not all(_COMPONENT.fullmatch(part) for part in name.split("/")):
                msg = f"file name {name!r} would leave the package folder"
                raise ValueError(msg)
            if not re.fullmatch(r"[0-9a-f]{64}", digest):
                msg = f"{name!r} has no valid SHA-256"
                raise ValueError(msg)
        return hashes


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The checked manifest of a package folder and the SHA-256 of its bytes.

    Raises:
        PackageError: No manifest, not JSON, a newer format, an unknown key or a wrong value.
    """
    path = folder / MANIFEST_NAME
    try:
        content = path.read_bytes()
    except OSError as error:
        msg = f"{folder} is not a model package: {MANIFEST_NAME} cannot be read ({error.strerror})"
        raise PackageError(msg, "A package is a folder that `medgen models list` shows.") from error
    try:
        values = json.loads(content)
    except ValueError as error:
        msg = f"{path} is not valid JSON: {error}"
        raise PackageError(msg, "Copy the package again from where it came.") from error
    found = values.get("format") if isinstance(values, dict) else None
    if isinstance(found, int) and found > FORMAT:
        msg = f"{path} has package format {found}; this medgen reads up to format {FORMAT}"
        raise PackageError(msg, "Upgrade medgen: pip install --upgrade medgen")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise PackageError(f"{path}: {first_problem(error)}") from error
    return manifest, hashlib.sha256(content).hexdigest()


def first_problem(error: ValidationError) -> str:
    """A validation error in one line: where, what was wrong, how many more."""
    problems = error.errors()
    where = ".".join(str(part) for part in problems[0]["loc"]) or "value"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if problems[0]["type"] == "extra_forbidden":
        return f"{where}: unknown key{more}"
    return f"{where}: {problems[0]['msg']}{more}"


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare every file with its recorded hash.

    Raises:
        PackageError: A file is missing, differs, or is a link that leads out of the folder.
    """
    root = folder.resolve()
    for name, expected in manifest.sha256.items():
        path = folder / name
        if not path.resolve().is_relative_to(root):
            msg = f"package {manifest.name}: {name} is a link that leads out of {folder}"
            raise PackageError(msg, "Replace the link by the file itself.")
        if not path.is_file():
            msg = f"package {manifest.name}: {name} is missing from {folder}"
            raise PackageError(msg, "Copy the package again from where it came.")
        found = hash_file(path)
        if found != expected:
            msg = (
                f"package {manifest.name}: {name} was changed or damaged "
                f"(SHA-256 {found[:12]}…, the manifest says {expected[:12]}…)"
            )
            raise PackageError(msg, "Do not use it; copy the package again from where it came.")
