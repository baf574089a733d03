"""A pipeline: which images of an archive, what to do with each, and what to write, as YAML."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from medgen.batch.rules import Rule
from medgen.config import Config, read_yaml
from medgen.errors import InputError
from medgen.io.deidentify import Profile
from medgen.manifest import first_problem
from medgen.tasks.chain import (
    AnyStep,
    DenoiseStep,
    InpaintStep,
    Step,
    SuperResolveStep,
    TranslateStep,
)

LARGEST_FILE = 1_000_000
DicomKind = Literal["seg", "pmap", "sr", "sc"]


class Detect(Config):
    """Find anomalies in each case, as ``medgen detect-anomalies`` does."""

    name: Literal["detect-anomalies"]
    model: str = Field("brain-mr", description="Name or folder of a model package.")
    threshold: float | None = Field(
        None, description="Map value from which a voxel counts, instead of the calibrated one."
    )
    report: bool = Field(True, description="Draw a report and an overview for each case.")
    dicom: tuple[DicomKind, ...] = Field(
        (), description="DICOM objects to write for cases that came as DICOM: seg, pmap, sr, sc."
    )


class Deidentify(Config):
    """Write each DICOM series again without what identifies the patient."""

    name: Literal["deidentify"]
    profile: Profile = Field(default_factory=Profile, description="Options of PS3.15.")


class Naming(Config):
    """Images that meet all conditions get this BIDS suffix."""

    when: tuple[Rule, ...] = Field(min_length=1, description="Conditions on header fields.")
    suffix: str = Field(pattern=r"^[A-Za-z0-9]+$", description="BIDS suffix, such as T1w.")
    datatype: str = Field("anat", pattern=r"^[a-z]+$", description="BIDS folder, such as anat.")


class Convert(Config):
    """Convert each DICOM series to NIfTI in a BIDS data set."""

    name: Literal["dicom-to-bids"]
    naming: tuple[Naming, ...] = Field(
        min_length=1, description="The first entry that fits an image names it."
    )


class Written(Config):
    """What the tasks that change a scan write, besides the new scan."""

    report: bool = Field(True, description="Draw a report and an overview for each case.")
    dicom: bool = Field(
        False, description="Write a derived DICOM series for cases that came as DICOM."
    )
    force: bool = Field(
        False, description="Take scans of contrasts that the model was not trained on, too."
    )


class Inpaint(InpaintStep, Written):
    """Fill what does not belong into a healthy scan, as ``medgen inpaint`` does."""


class SuperResolve(SuperResolveStep, Written):
    """Give each scan a finer grid, as ``medgen super-resolve`` does."""


class Denoise(DenoiseStep, Written):
    """Take noise out, as ``medgen denoise`` does."""


class Translate(TranslateStep, Written):
    """Make an image of another contrast or modality, as ``medgen translate`` does."""


class Chain(Written):
    """Several of inpaint, super-resolve, denoise and translate, one after the other."""

    name: Literal["chain"]
    steps: tuple[AnyStep, ...] = Field(
        min_length=2,
        description="In their order: a `name` and the keys of that task, without those of what is "
        "written. Each works on the result of the one before, in memory; that of the last is "
        "written.",
    )


Restoring = Inpaint | SuperResolve | Denoise | Translate | Chain
Task = Detect | Restoring | Deidentify | Convert


def steps_of(task: Restoring) -> tuple[Step, ...]:
    """The steps of a task that changes scans; a single one is a chain of one."""
    return task.steps if isinstance(task, Chain) else (task,)


class Selection(Config):
    """Which images a pipeline takes."""

    require: tuple[Rule, ...] = Field((), description="Every one of these must hold.")
    prefer: tuple[Rule, ...] = Field(
        (), description="Among several, those that meet the first rule come first, and so on."
    )


class Pipeline(Config):
    """What a pipeline file says. Unknown keys are refused."""

    name: str = Field(pattern=r"^[a-z0-9]+(_[a-z0-9]+)*$", description="Short name.")
    description: str = Field("", description="One line for the summary.")
    inputs: tuple[Literal["dicom", "bids", "nifti"], ...] = Field(
        ("dicom", "bids", "nifti"), min_length=1, description="Kinds of archive it works on."
    )
    case: Literal["image", "study"] = Field(
        "image",
        description="image: each image that fits is a case; study: the best image of each study "
        "(in BIDS: of each session; in a folder of NIfTI: of each file)",
    )
    images: Selection = Field(default_factory=Selection, description="Which images to take.")
    task: Annotated[Task, Field(discriminator="name", description="What to do with each case.")]
    timeout_minutes: float = Field(
        30.0, gt=0, description="A case that takes longer is stopped and recorded as failed."
    )
    attempts: int = Field(
        3, ge=1, le=10, description="Tries of a case that runs out of memory or kills its worker."
    )

    @field_validator("task")
    @classmethod
    def _no_repeats(cls, task: Task) -> Task:
        if isinstance(task, Detect) and len(set(task.dicom)) != len(task.dicom):
            raise ValueError(f"each kind of DICOM object counts once, got {list(task.dicom)}")
        return task

    @property
    def sha256(self) -> str:
        """Identifies what the pipeline does; not how long it may take or how it is described."""
        values = self.model_dump(
            mode="json", exclude={"description", "timeout_minutes", "attempts"}
        )
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_pipeline(path: Path) -> Pipeline:
    """Read and check a pipeline file.

    Raises:
        InputError: The file is missing, not YAML, or not a pipeline; says which key and why.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{path} is too large for a pipeline ({path.stat().st_size} bytes)")
        values: Any = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"cannot read the pipeline {path}: {error.strerror}"
        raise InputError(msg, "Name a YAML file; examples lie in pipelines/.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise InputError(f"{path} is not valid YAML{line}", "Check the indentation.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a pipeline: expected keys such as name and task")
    try:
        return Pipeline.model_validate(values)
    except ValidationError as error:
        hint = "`medgen batch schema` prints everything a pipeline may say."
        raise InputError(f"{path}: {first_problem(error)}", hint) from error


def json_schema() -> dict[str, Any]:
    """JSON schema of a pipeline file, for editors and other programs."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "medgen pipeline",
        **Pipeline.model_json_schema(),
    }
