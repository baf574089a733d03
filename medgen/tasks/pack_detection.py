"""Package a detector: how its network is used, calibrated on healthy scans it never saw.

They are drawn from the label maps that were held out of training, or, of a network that learned
from real normal images, the images of the groups that were held out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medgen.config import Config
from medgen.errors import InputError
from medgen.manifest import Contract, TrainingData
from medgen.package import ModelPackage, run_model, save_package
from medgen.run_record import hash_name
from medgen.tasks.pack_recipe import (
    Recipe,
    Run,
    data_table,
    metrics_table,
    training_section,
    with_facts,
)

if TYPE_CHECKING:
    from medgen.normal_sets import Normals
    from medgen.scoring import Calibration
    from medgen.volume import Volume


class CalibrationRecipe(Config):
    """Which healthy scans, and how many false findings they may show.

    Of real normal images all that were held out are used, whatever ``scans`` and ``contrasts`` say.
    """

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

    from medgen.training.batches import build_source

    source: Any = build_source(run.config, run.method)
    reference = _Reference.of(source, recipe, run.config.data)
    _same_preparation(recipe, reference.preparation)
    told = recipe.model_copy(update={"training_data": reference.training_data})
    described: dict[str, Any] = {
        **recipe.described(),
        "contract": recipe.contract,
        "preparation": recipe.preparation,
        "inference": recipe.inference,
        "scoring": {**recipe.scoring, "minimum_volume_mm3": recipe.calibration.minimum_volume_mm3},
        "training_data": reference.training_data,
    }
    golden = _golden(recipe.contract)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        draft = save_package(
            Path(folder) / recipe.name,
            run.method,
            card="",
            golden=golden,
            half_precision=True,
            **described,
        )
        calibration = _calibrate(draft, reference, recipe.calibration, progress)
    return save_package(
        output,
        run.method,
        card=_card(told, run.record, calibration, reference.origin),
        golden=golden,
        calibration=calibration,
        half_precision=True,
        overwrite=overwrite,
        **described,
    )


def _golden(contract: Contract) -> Volume:
    """A phantom that the model takes; as a picture, its values are those of 8 bits."""
    from medgen.phantoms import brain
    from medgen.volume import Volume

    if 3 in contract.spatial_dims:
        return brain((24, 28, 20), spacing_mm=6.0, contrast="flair", lesion_radius_mm=15.0).image
    slice_ = brain((48, 48), spacing_mm=4.0, contrast="flair", lesion_radius_mm=15.0).image
    scale = 255 / float(slice_.voxels.max())
    voxels = np.repeat((slice_.voxels * scale).round(), contract.channels, axis=0)
    return Volume(voxels.astype(np.float32), slice_.geometry, slice_.provenance)


class _Healthy(NamedTuple):
    """A healthy scan: whose it is, and its mask if that is known."""

    subject: str
    scan: Volume
    mask: NDArray[np.bool_] | None


class _Reference(NamedTuple):
    """The healthy scans that a detector is calibrated on.

    Attributes:
        scans: One after the other.
        total: How many.
        drawn: They were simulated, not acquired.
        origin: What the card says of them.
        preparation: What the network was trained on, as far as a recipe can say otherwise.
        training_data: With a hash for every subject trained on, so that leakage can be seen.
    """

    scans: Iterator[_Healthy]
    total: int
    drawn: bool
    origin: str
    preparation: dict[str, Any]
    training_data: tuple[TrainingData, ...]

    @classmethod
    def of(cls, source: Any, recipe: DetectionRecipe, data: dict[str, Any]) -> _Reference:
        """The reference of a network that learned from this source.

        Raises:
            InputError: No real normal images were held out.
        """
        from medgen.anatomy import PERCENTILES
        from medgen.normal_sets import Normals

        first, *others = recipe.training_data or (None,)
        if not isinstance(source, Normals):
            lower, upper = (100 * part for part in PERCENTILES)
            return cls(
                _drawn(source, recipe.calibration),
                recipe.calibration.scans,
                drawn=True,
                origin="drawn from the label maps that were held out of training",
                preparation={
                    "spacing_mm": source.config.spacing_mm,
                    "normalisation": "percentile",
                    "lower": lower,
                    "upper": upper,
                },
                training_data=_with_hashed_ids(recipe.training_data, data),
            )
        if not source.held_out_files:
            raise InputError(
                "no normal images were held out of training, so none can calibrate the model",
                "Train with data.validation_fraction above 0.",
            )
        return cls(
            _read(source),
            len(source.held_out_files),
            drawn=False,
            origin="real ones, of the groups that were held out of training",
            preparation=source.config.preparation.model_dump(),
            training_data=(with_facts(first, source.facts), *others) if first else (),
        )


def _drawn(source: Any, recipe: CalibrationRecipe) -> Iterator[_Healthy]:
    """Scans that take the held-out subjects in turn; a full turn later, the next contrast."""
    from medgen.volume import Volume

    for number in range(recipe.scans):
        turn, subject = divmod(number, len(source.validation_subjects))
        contrast = recipe.contrasts[turn % len(recipe.contrasts)]
        image, affine = source.healthy_scan(number, contrast)
        yield _Healthy(str(subject), Volume.from_array(image, affine), image > 0)


def _read(source: Normals) -> Iterator[_Healthy]:
    """Real normal images of groups that were held out."""
    from medgen import io

    for item in source.held_out_files:
        yield _Healthy(item.group, io.read(item.path), None)


def _same_preparation(recipe: DetectionRecipe, trained: dict[str, Any]) -> None:
    """Refuse a recipe that would show the network other images than it was trained on."""
    from medgen.preparation import Preparation

    used = Preparation.model_validate(recipe.preparation).model_dump()
    asked = {name: used[name] for name in trained}
    if asked != trained:
        names = [name for name in trained if asked[name] != trained[name]]
        msg = (
            f"the recipe's preparation ({', '.join(names)}) is "
            f"{tuple(asked[name] for name in names)}, but the network was trained on "
            f"{tuple(trained[name] for name in names)}"
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
    hashes = tuple(hash_name(name) for name in names if name not in held_out)
    return (data[0].model_copy(update={"hashed_ids": hashes, "cases": len(hashes)}), *data[1:])


def _calibrate(
    package: ModelPackage,
    reference: _Reference,
    recipe: CalibrationRecipe,
    progress: Callable[[int, int], None] | None,
) -> Calibration:
    """The calibration on healthy scans of held-out subjects."""
    from medgen.scoring import Calibration, scan_score

    method, kind = package.method(), package.scoring.scan_score
    normals, subjects, dims = [], [], set()
    for number, (subject, scan, mask) in enumerate(reference.scans, 1):
        result = run_model(package, scan, method=method, brain_mask=mask)
        normals.append((result.map, result.brain_mask, scan.geometry.voxel_volume_mm3))
        subjects.append(subject)
        dims.add(scan.spatial_dims)
        if progress is not None:
            progress(number, reference.total)
    if len(dims) > 1:
        msg = "some of the held-out normal images are slices and some are volumes"
        raise InputError(msg, "Their scores are different quantities: train on one kind.")
    made = Calibration.from_normals(
        normals,
        recipe.target_false_findings_per_scan,
        recipe.minimum_volume_mm3,
        subjects=subjects,
        kind=kind,
    ).model_copy(update={"drawn": reference.drawn, "spatial_dims": dims.pop()})
    if reference.drawn:
        return made
    return made.one_score_per_person([scan_score(*one, kind) for one in normals], subjects)


def _card(
    recipe: DetectionRecipe, record: dict[str, Any], calibration: Calibration, origin: str
) -> str:
    """The model card."""
    return f"""# {recipe.name} {recipe.version}

{recipe.summary}

## Intended use

{recipe.intended_use}

## Limitations

{recipe.limitations}

## Training

{training_section(recipe, record)}

{data_table(recipe)}

## Calibration

{calibration.threshold_rule}

The normal scans are {origin}.

## Measured on real scans

{metrics_table(recipe)}
"""
