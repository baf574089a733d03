"""Package a detector: how its network is used, calibrated on healthy scans it never saw."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from medgen.config import Config
from medgen.errors import InputError
from medgen.manifest import Contract, TrainingData
from medgen.package import ModelPackage, run_model, save_package
from medgen.tasks.pack_recipe import Recipe, Run, data_table, metrics_table


class CalibrationRecipe(Config):
    """Which healthy scans, and how many false findings they may show."""

    scans: int = Field(30, ge=2, description="healthy scans to draw, from held-out subjects")
    contrasts: tuple[Literal["t1", "t2", "flair", "random"], ...] = ("t1", "t2", "flair")
    target_false_findings_per_scan: float = Field(0.5, gt=0)
    minimum_volume_mm3: float = Field(20.0, ge=0)


class DetectionRecipe(Recipe):
    """How a detector is used and calibrated."""

    task: Literal["detect-anomalies"] = "detect-anomalies"
    contract: Contract
    preparation: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies it)
    inference: dict[str, Any] = {}  # noqa: RUF012
    scoring: dict[str, Any] = {}  # noqa: RUF012
    calibration: CalibrationRecipe = CalibrationRecipe()


def pack_detector(
    run: Run,
    recipe: DetectionRecipe,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ModelPackage:
    """Calibrate a trained network on held-out healthy scans and write its package.

    Raises:
        InputError: The recipe does not fit the run, or the folder exists.
    """
    import torch

    from medgen.phantoms import brain
    from medgen.training.batches import build_source

    source: Any = build_source(run.config, run.method)
    _same_preparation(recipe, source)
    described: dict[str, Any] = {
        **recipe.described(),
        "contract": recipe.contract,
        "preparation": recipe.preparation,
        "inference": recipe.inference,
        "scoring": {**recipe.scoring, "minimum_volume_mm3": recipe.calibration.minimum_volume_mm3},
        "training_data": _with_hashed_ids(recipe.training_data, run.config.data),
    }
    golden = brain((24, 28, 20), spacing_mm=6.0, contrast="flair", lesion_radius_mm=15.0).image
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        draft = save_package(
            Path(folder) / recipe.name,
            run.method,
            card="",
            golden=golden,
            half_precision=True,
            **described,
        )
        calibration = _calibrate(draft, run.method, source, recipe.calibration, progress)
    return save_package(
        output,
        run.method,
        card=_card(recipe, run.record, calibration),
        golden=golden,
        calibration=calibration,
        half_precision=True,
        overwrite=overwrite,
        **described,
    )


def _same_preparation(recipe: DetectionRecipe, source: Any) -> None:
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


def _card(recipe: DetectionRecipe, record: dict[str, Any], calibration: Any) -> str:
    """The model card."""
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

{data_table(recipe)}

## Calibration

{calibration.threshold_rule}

The normal scans are drawn from the label maps that were held out of training.

## Measured on real scans

{metrics_table(recipe)}
"""
