"""What a comparison of anomaly detectors is told: data, protocols, models, methods to train.

Imports no torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from medgen.config import Config, read_yaml
from medgen.errors import InputError
from medgen.methods import method_names
from medgen.preparation import Preparation
from medgen.scoring.maps import Evidence
from medgen.tasks.anomaly_cases import Case, CaseSet, cases_of, refuse_other_sizes, refuse_shared
from medgen.tasks.anomaly_protocols import Protocol, Variant, protocol, variants
from medgen.tasks.benchmark_runs import RESULT, RUNS, stored
from medgen.training.config import TrainingConfig, set_key, validated

SETS = ("test", "validation", "normals")
INTENSITY, INVERTED, UNTRAINED = "intensity", "intensity, inverted", "untrained"
BASELINES = (INTENSITY, INVERTED, UNTRAINED)
# Settings of a method's data that name a file or folder.
PATHS = ("folder", "lesions")
Kind = Literal["baseline", "package", "run", "method"]


class ModelEntry(Config):
    """Models that exist: a package, training runs of one method, or all that a study trained."""

    name: str | None = Field(None, description="in tables; left out: that of the package or run")
    package: str | None = Field(None, description="name or folder of a model package")
    runs: tuple[Path, ...] = Field(
        (), description="folders that `medgen train` wrote, one per seed"
    )
    study: Path | None = Field(
        None, description="folder that `medgen benchmark anomaly` wrote: all methods and seeds"
    )
    evidence: Evidence | None = Field(
        None, description="what its maps are made of, instead of what the protocol prefers"
    )


class MethodEntry(Config):
    """A method to be trained."""

    method: str | None = Field(None, description="in the registry; left out: its name here")
    config: dict[str, Any] = Field({}, description="the method's settings")
    data: dict[str, Any] = Field({}, description="changes to training.data")
    training: dict[str, Any] = Field({}, description="changes to training, such as batch_size")
    evidence: Evidence | None = None


class Study(Config):
    """A comparison: the same cases, region, protocols and seed for all models."""

    name: str = Field(description="title of the tables")
    root: Path = Field(Path(), description="paths of data lie below it")
    protocols: tuple[str | dict[str, Any], ...] = Field(
        min_length=1, description="names, or {name: NAME, SETTING: VALUE}"
    )
    test: CaseSet
    validation: CaseSet | None = Field(
        None,
        description="where thresholds come from: with lesions the threshold of the best Dice, of "
        "normal cases only that of `false_positive_rate`",
    )
    normals: CaseSet | None = Field(
        None, description="normal cases of another source, on which findings are false"
    )
    models: tuple[str | ModelEntry, ...] = Field((), description="packages and runs")
    methods: dict[str, MethodEntry] = Field({}, description="to be trained, by name")
    training: dict[str, Any] = Field(
        {}, description="settings of every training, as `medgen train` takes them"
    )
    preparation: Preparation = Field(
        Preparation(), description="of runs, methods and baselines; and where to look, for all"
    )
    inference: dict[str, Any] = Field({}, description="of runs and methods")
    minimum_finding_mm3: float = Field(
        10.0, ge=0, description="smaller findings detect nothing and are not false"
    )
    false_positive_rate: float = Field(
        0.01, gt=0, lt=1, description="voxels above the threshold on a normal validation set"
    )
    resamples: int = Field(2000, ge=100, description="draws of the bootstrap")
    pictures: int = Field(4, ge=0, description="abnormal cases that the page shows")
    seed: int = Field(0, ge=0, description="of the bootstrap, and the first of trainings")

    @field_validator("models")
    @classmethod
    def _entries(cls, models: tuple[str | ModelEntry, ...]) -> tuple[ModelEntry, ...]:
        found = tuple(ModelEntry(package=m) if isinstance(m, str) else m for m in models)
        for entry in found:
            if sum((entry.package is not None, bool(entry.runs), entry.study is not None)) != 1:
                raise ValueError("a model needs one of `package`, `runs` and `study`")
        return found

    @model_validator(mode="after")
    def _all_is_used(self) -> Study:
        if self.training and not self.methods:
            raise ValueError("`training` is there, but no `methods` that would be trained")
        return self


@dataclass(frozen=True)
class Unit:
    """One model of one seed, as it is evaluated.

    Attributes:
        name: Of its row; units of one name are seeds of one method.
        seed: Its number.
        kind: What it is.
        source: Package, run or method.
        evidence: What its maps are made of, if not what the protocol prefers.
    """

    name: str
    seed: int
    kind: Kind
    source: str = ""
    evidence: Evidence | None = None

    @property
    def label(self) -> str:
        """Name of its folder."""
        return f"{re.sub('[^A-Za-z0-9._-]+', '-', self.name).strip('-.')}-seed{self.seed}"


def read_study(path: Path, changes: Sequence[str] = (), root: Path | None = None) -> Study:
    """Read a study.

    Args:
        path: YAML file.
        changes: ``key=value`` with a dotted key and a YAML value.
        root: Where the data lie, instead of the file's ``root``.

    Raises:
        InputError: The file is missing or no YAML mapping, or a setting is unknown or wrong.
    """
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the study {path}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        msg = f"{path} must hold `key: value` lines, got {type(values).__name__}"
        raise InputError(msg, "The folder configs/studies/ holds examples.")
    for change in changes:
        set_key(values, change)
    if root is not None:
        values["root"] = str(root)
    study = validated(Study, values, str(path))
    for one in study.protocols:
        protocol(one)
    for name, entry in study.methods.items():
        _known(entry.method or name)
    return study


def _known(name: str) -> None:
    known = method_names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        question = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"unknown method {name!r}.{question}", f"Known methods: {', '.join(known)}."
        )


def study_variants(study: Study) -> list[Variant]:
    """The protocols of a study, and those with a prior once more without it."""
    return variants([protocol(one) for one in study.protocols])


def study_cases(study: Study) -> dict[str, list[Case]]:
    """The cases of each set, after a look at whether they can be used.

    Raises:
        InputError: Files are missing, or a protocol does not fit the data.
        LeakageError: A subject is in two sets.
        GeometryError: A mask has another size than its image.
    """
    found = {
        name: cases_of(settings, study.root)
        for name in SETS
        if (settings := getattr(study, name)) is not None
    }
    refuse_shared(found)
    for one in study.protocols:
        _require_fit(protocol(one), found)
    if any(case.abnormal is not False for case in found.get("normals", ())):
        raise InputError("`normals` must hold normal cases only", "Leave out masks and `abnormal`.")
    for cases in found.values():
        refuse_other_sizes(cases)
    return found


def _require_fit(wanted: Protocol, cases: Mapping[str, Sequence[Case]]) -> None:
    """Refuse a protocol that the data do not allow."""
    test, validation = cases["test"], cases.get("validation", ())
    if wanted.fixed_threshold and not validation:
        raise InputError(
            f"protocol {wanted.name} fixes its threshold on a validation set, and there is none",
            "Give `validation`: cases of other subjects than the test's.",
        )
    if not wanted.voxels:
        if len({case.abnormal for case in test if case.abnormal is not None}) == 1:
            kind = "abnormal" if test[0].abnormal else "normal"
            raise InputError(
                f"all {len(test)} test cases are {kind}: no image-level metric is defined",
                "Add the other kind, or use a protocol that measures voxels.",
            )
        return
    unmarked = [case for case in test if not case.masked]
    if unmarked:
        raise InputError(
            f"protocol {wanted.name} measures voxels, but {len(unmarked)} of {len(test)} test "
            f"cases have no lesion mask, such as {unmarked[0].name}",
            "Give `test.masks`, or use the protocol image_level.",
        )
    if all(case.abnormal is False for case in test):
        raise InputError(
            f"all {len(test)} test cases are normal: no metric of {wanted.name} is defined",
            "Add cases with lesions; `normals` is for false positives.",
        )


def units(study: Study, methods: Sequence[str] = (), seeds: int = 1) -> list[Unit]:
    """All that is evaluated: baselines first, then models, then methods seed by seed.

    Args:
        study: The comparison.
        methods: Which of its methods; empty: all.
        seeds: Trainings of each method.

    Raises:
        InputError: Unknown or equal names.
        PackageError: A package is missing, damaged or for another task.
    """
    from medgen.package import WEIGHTS, load_package

    unknown = [name for name in methods if name not in study.methods]
    if unknown:
        raise InputError(
            f"the study has no method {unknown[0]!r}", f"It has: {', '.join(study.methods)}."
        )
    chosen = [name for name in study.methods if name in methods or not methods]
    found = [Unit(name, 0, "baseline") for name in (INTENSITY, INVERTED)]
    others: list[Unit] = []
    weights = bool(chosen)
    for entry in study.models:
        assert isinstance(entry, ModelEntry)
        weights |= entry.package is None
        if entry.package is not None:
            weights |= load_package(entry.package, "detect-anomalies").has(WEIGHTS)
            name = entry.name or Path(entry.package).name
            others.append(Unit(name, 0, "package", entry.package, entry.evidence))
        for number, run in enumerate(entry.runs):
            name = entry.name or entry.runs[0].name
            others.append(Unit(name, number, "run", str(run), entry.evidence))
        if entry.study is not None:
            others += _trained_in(entry.study)
    for seed in range(seeds):
        others += [
            Unit(name, study.seed + seed, "method", name, study.methods[name].evidence)
            for name in chosen
        ]
    if weights:
        # With the settings of the first that has any.
        found.append(Unit(UNTRAINED, 0, "baseline", evidence=others[0].evidence))
    found += others
    labels = [unit.label for unit in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        hint = "Give each a `name` of its own."
        if any(unit.label == twice for unit in found if unit.kind == "baseline"):
            hint = "One is a baseline, which stands in every study: leave it out of `models`."
        raise InputError(f"two models would be called {twice}", hint)
    return found


def _trained_in(folder: Path) -> list[Unit]:
    """The methods that an earlier study trained, with their seeds."""
    found = []
    for result in sorted((folder / RUNS).glob(f"*/{RESULT}")):
        cell = stored(result.parent)
        if cell is None:
            raise InputError(
                f"{result} is damaged", "Go on with that study (--resume): it is made again."
            )
        if cell["kind"] == "method":
            run = str(result.parent / "training")
            found.append(Unit(cell["name"], cell["seed"], "run", run, cell["evidence"]))
    if not found:
        raise InputError(f"{folder} holds no method that `medgen benchmark anomaly` has trained")
    return found


def config_of(study: Study, name: str) -> dict[str, Any]:
    """The settings of a method: those of all methods, with its own."""
    return {**study.training.get("config", {}), **study.methods[name].config}


def training_of(
    study: Study, unit: Unit, *, steps: int | None, minutes: float | None
) -> TrainingConfig:
    """The training run of a method: the study's settings with the method's changes.

    Raises:
        InputError: A setting is unknown or missing.
    """
    entry = study.methods[unit.source]
    shared = {key: value for key, value in study.training.items() if key != "data"}
    data = {**study.training.get("data", {}), **entry.data}
    for key in PATHS:
        if isinstance(data.get(key), str):
            data[key] = str(study.root / data[key])
    if data.get("kind") == "normals":  # what is trained on must look like what is tested
        data.setdefault("preparation", study.preparation.model_dump(mode="json"))
    values = {**shared, **entry.training, "config": config_of(study, unit.source), "data": data}
    values |= {"name": unit.name, "method": entry.method or unit.source, "seed": unit.seed}
    if minutes is not None:
        values |= {"steps": 10_000_000, "minutes": minutes}
    elif steps is not None:
        values |= {"steps": steps, "minutes": None}
    return validated(TrainingConfig, values, f"method {unit.name}")
