"""Turn a finished training run into a model package: calibrate it, describe it, write it.

The recipe is a YAML file beside the training configuration. It says how the network is used
(preparation, inference, scoring), what it is for, and how it is calibrated: on whole healthy
scans drawn from the subjects that the training run held out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from medgen.config import Config
from medgen.errors import InputError
from medgen.manifest import Contract, Metric, TrainingData, first_problem
from medgen.package import ModelPackage, run_model, save_package

log = logging.getLogger(__name__)


class CalibrationRecipe(Config):
    """Which healthy scans, and how many false findings they may show."""

    scans: int = Field(30, ge=2, description="healthy scans to draw, from held-out subjects")
    contrasts: tuple[Literal["t1", "t2", "flair", "random"], ...] = ("t1", "t2", "flair")
    target_false_findings_per_scan: float = Field(0.5, gt=0)
    minimum_volume_mm3: float = Field(20.0, ge=0)


class PackageRecipe(Config):
    """Everything a package says that a training run does not know."""

    name: str
    version: str
    summary: str
    intended_use: str
    limitations: str
    training_config: str = Field(description="the configuration, as a path in the repository")
    contract: Contract
    preparation: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies it)
    inference: dict[str, Any] = {}  # noqa: RUF012
    scoring: dict[str, Any] = {}  # noqa: RUF012
    calibration: CalibrationRecipe = CalibrationRecipe()
    training_data: tuple[TrainingData, ...] = ()
    metrics: tuple[Metric, ...] = ()


def read_recipe(path: Path) -> PackageRecipe:
    """Read a package recipe.

    Raises:
        InputError: The file is missing, no YAML, or a key or value is wrong.
    """
    try:
        return PackageRecipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the package recipe {path}: {error}") from error
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from error


def pack(
    run: Path,
    recipe: PackageRecipe,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ModelPackage:
    """Calibrate a trained network on held-out healthy scans and write its package.

    Args:
        run: Folder that ``medgen train`` wrote.
        recipe: What the package says and how it is used.
        output: The package's folder.
        overwrite: Replace an existing package.
        progress: Called with (done, total) calibration scans.

    Raises:
        InputError: The run is unfinished or damaged, or the folder exists.
    """
    import torch
    from safetensors.torch import load_file

    from medgen.methods import build
    from medgen.phantoms import brain
    from medgen.training.batches import build_source
    from medgen.training.config import TrainingConfig

    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already", "Choose another name, or use --overwrite.")
    record = _record_of(run)
    config = TrainingConfig.model_validate(record["config"])
    method: Any = build(config.method, config.config)
    weights = load_file(run / "weights.safetensors")
    # The package stores half precision: calibrate the network that will be used, not a finer one.
    halved = {
        name: value.half().to(value.dtype) if value.is_floating_point() else value
        for name, value in weights.items()
    }
    method.load_state_dict(halved)
    method.eval()
    source: Any = build_source(config, method)
    _same_preparation(recipe, source)
    described: dict[str, Any] = {
        "version": recipe.version,
        "summary": recipe.summary,
        "intended_use": recipe.intended_use,
        "contract": recipe.contract,
        "preparation": recipe.preparation,
        "inference": recipe.inference,
        "scoring": {**recipe.scoring, "minimum_volume_mm3": recipe.calibration.minimum_volume_mm3},
        "training_data": _with_hashed_ids(recipe.training_data, config.data),
        "metrics": recipe.metrics,
        "name": recipe.name,
    }
    golden = brain((24, 28, 20), spacing_mm=6.0, contrast="flair", lesion_radius_mm=15.0).image
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        draft = save_package(
            Path(folder) / recipe.name,
            method,
            card="",
            golden=golden,
            half_precision=True,
            **described,
        )
        calibration = _calibrate(draft, method, source, recipe.calibration, progress)
    card = _card(recipe, record, calibration)
    return save_package(
        output,
        method,
        card=card,
        golden=golden,
        calibration=calibration,
        half_precision=True,
        overwrite=overwrite,
        **described,
    )


def _record_of(run: Path) -> dict[str, Any]:
    """What ``training.json`` says of a finished run."""
    try:
        record: dict[str, Any] = json.loads((run / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{run} holds no finished training run ({error})"
        raise InputError(msg, "Give the folder that `medgen train -o` wrote.") from error
    if not record.get("finished"):
        msg = f"the training run in {run} stopped at step {record.get('step')} before its end"
        raise InputError(msg, "Finish it with `medgen train --resume`.")
    return record


def _same_preparation(recipe: PackageRecipe, source: Any) -> None:
    """Refuse a recipe that would show the network other images than it was trained on."""
    from medgen.anatomy import PERCENTILES
    from medgen.preparation import Preparation

    used = Preparation.model_validate(recipe.preparation)
    trained = (source.config.spacing_mm, "percentile", *(100 * part for part in PERCENTILES))
    asked = (used.spacing_mm, used.normalisation, used.lower, used.upper)
    if asked != trained:
        msg = (
            "the recipe's preparation (spacing_mm, normalisation, lower, upper) is "
            f"{asked}, but the network was trained on {trained}"
        )
        raise InputError(msg, "Make them equal: training and use must not differ.")


def _with_hashed_ids(
    data: tuple[TrainingData, ...], source: dict[str, Any]
) -> tuple[TrainingData, ...]:
    """The first data set with a hash for every subject trained on, so that leakage can be seen."""
    folder = source.get("folder")
    if not data or folder is None:
        return data
    held_out = set(source.get("validation_subjects", ()))
    names = source.get("subjects") or sorted(
        file.name.split(".")[0] for file in Path(folder).glob("*.nii*")
    )
    hashes = tuple(
        hashlib.sha256(name.encode()).hexdigest() for name in names if name not in held_out
    )
    return (data[0].model_copy(update={"hashed_ids": hashes, "cases": len(hashes)}), *data[1:])


def _calibrate(
    package: ModelPackage,
    method: Any,
    source: Any,
    recipe: CalibrationRecipe,
    progress: Callable[[int, int], None] | None,
) -> Any:
    """The calibration on healthy scans of held-out subjects."""
    from medgen.scoring import Calibration
    from medgen.volume import Volume

    normals, subjects = [], []
    for number in range(recipe.scans):
        # Scans take the held-out subjects in turn; a full turn later, the next contrast.
        turn, subject = divmod(number, len(source.validation_subjects))
        contrast = recipe.contrasts[turn % len(recipe.contrasts)]
        image, affine = source.healthy_scan(number, contrast)
        subjects.append(str(subject))
        scan = Volume.from_array(image, affine)
        result = run_model(package, scan, method=method, brain_mask=image > 0)
        normals.append((result.map, result.brain_mask, scan.geometry.voxel_volume_mm3))
        if progress is not None:
            progress(number + 1, recipe.scans)
    return Calibration.from_normals(
        normals,
        recipe.target_false_findings_per_scan,
        recipe.minimum_volume_mm3,
        subjects=subjects,
    ).model_copy(update={"drawn": True})


def _card(recipe: PackageRecipe, record: dict[str, Any], calibration: Any) -> str:
    """The model card."""
    data = "\n".join(f"| {d.name} | {d.cases} | {d.licence} |" for d in recipe.training_data)
    metrics = "\n".join(
        f"| {m.name} | {m.value:.3f} | {m.data} | {m.split} |" for m in recipe.metrics
    )
    last = ", ".join(
        f"{name.removeprefix('validation/')} {value:.4g}"
        for name, value in record["metrics"].items()
        if name.startswith("validation/")
    )
    return f"""# {recipe.name} {recipe.version}

{recipe.summary}

## Intended use

{recipe.intended_use}

## Limitations

{recipe.limitations}

## Training

Method `{record["config"]["method"]}`, {record["parameters"]:,} parameters, {record["step"]:,} steps
of {record["config"]["batch_size"]} images in {record["seconds"] / 60:.0f} minutes on
{record["device"]} ({record["threads"]} threads), seed {record["seed"]}. On images drawn from the
held-out subjects at the end: {last}. The configuration is `{recipe.training_config}`; the network
took {record["metrics"]["network_images_per_s"]:.0f} images a second at the end, while the generator
can draw {record["metrics"]["generator_images_per_s"]:.0f}.

| data | cases | licence |
|---|---|---|
{data}

## Calibration

{calibration.threshold_rule}

The normal scans are drawn from the label maps that were held out of training.

## Measured on real scans

| metric | value | data | how the data was used |
|---|---|---|---|
{metrics}
"""
