"""Package a restoration model: how surely it restores, measured on data it never saw; pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medgen.config import Config
from medgen.errors import InputError
from medgen.manifest import Contract, Restores, SpreadCalibration, TrainingData
from medgen.package import ModelPackage, save_package
from medgen.package.restoration import WithSpread
from medgen.run_record import hash_name
from medgen.tasks.pack_recipe import (
    Recipe,
    Run,
    data_table,
    metrics_table,
    training_section,
    with_facts,
)
from medgen.tasks.restoration_samples import golden_image, sample_picture
from medgen.training.config import validated

SAMPLES = "samples.jpg"
# Voxels taken of each held-out batch: neighbours tell little new.
VOXELS_PER_BATCH = 20_000
# Voxels around a hole that an inpainting network is shown.
HOLE_CONTEXT = 32
# How far the tiles of a denoiser overlap.
TILE_OVERLAP = 0.25
# Every restoration model is prepared like this; a recipe says the rest.
PREPARATION = {"brain": "none", "brightest": None}


class SpreadRecipe(Config):
    """How the uncertainty is calibrated."""

    level: float = Field(0.9, gt=0, lt=1, description="part of the errors that it shall cover")
    batches: int = Field(40, ge=2, description="held-out; half to fit, half to measure coverage")


class RestorationRecipe(Recipe):
    """How a restoration model is used, and how its uncertainty is calibrated."""

    task: Literal["inpaint", "super-resolve", "denoise", "translate"]
    contract: Contract
    preparation: dict[str, Any] = {}  # noqa: RUF012  (pydantic copies it)
    inference: dict[str, Any] = {}  # noqa: RUF012
    restoration: dict[str, Any] = Field(
        {}, description="keys of the manifest's `restoration` that the run does not know"
    )
    spread: SpreadRecipe = SpreadRecipe()
    soften: bool = Field(
        False, description="make only that part of the network's corrections that comes closest to "
        "the truth on held-out data"
    )  # fmt: skip


def pack_restorer(
    run: Run,
    recipe: RestorationRecipe,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ModelPackage:
    """Calibrate a trained restoration network on held-out data and write its package.

    Raises:
        InputError: The recipe does not fit the run, its data are gone, or the folder exists.
    """
    from medgen.training.batches import build_source

    source: Any = build_source(run.config, run.method)
    restores = _restores(recipe, source)
    preparation = _preparation(recipe, source)
    measured: dict[str, float] = {}
    if restores.paired:
        if not getattr(source, "holds_out", True):
            raise InputError(
                "the run held nothing out, so the spread cannot be calibrated",
                "Train with data.anatomy.validation_subjects and a validation_fraction above 0.",
            )
        if recipe.soften:
            measured["strength"] = soften(run.method, source, recipe.spread.batches)
        spread, found = calibrate(run.method, source, recipe.spread, progress)
        measured |= found
        restores = restores.model_copy(update={"spread": spread})
    planes = len(restores.targets) if len(restores.targets) > 1 else 0
    picture = sample_picture(run.config, run.method)
    recipe = recipe.model_copy(update={"training_data": _known(recipe.training_data, source)})
    return save_package(
        output,
        run.method,
        card=_card(recipe, run, restores, measured, pictured=picture is not None),
        golden={"image": golden_image(run.config, run.method, planes)},
        files={} if picture is None else {SAMPLES: picture},
        half_precision=True,
        overwrite=overwrite,
        **recipe.described(),
        task=recipe.task,
        contract=recipe.contract,
        preparation=preparation,
        inference=_inference(recipe, run.method, source.config),
        restoration=restores,
    )


def _restores(recipe: RestorationRecipe, source: Any) -> Restores:
    """What the run knows of its task, and what the recipe says besides."""
    settings = source.config
    trained = getattr(settings, "task", "translate").replace("_", "-")
    if trained != recipe.task:
        raise InputError(f"the recipe is for {recipe.task}, but the run trained {trained}")
    known: dict[str, Any] = {}
    if recipe.task == "denoise":
        known["noise"] = tuple(source.noise)
    elif recipe.task == "super-resolve":
        known["scales"] = tuple(sorted({float(max(factors)) for factors in settings.factors}))
    elif recipe.task == "translate":
        given = getattr(settings, "targets", None)
        known["targets"] = given or (settings.target,)
        known["sources"] = getattr(settings, "sources", None) or (settings.source,)
        known["paired"] = getattr(settings, "paired", True)
        if "random" in known["sources"]:  # trained on every contrast there may be
            known["sources"] = ("any",)
    given = {**known, **recipe.restoration}
    return validated(Restores, given, "restoration in the recipe")


def _preparation(recipe: RestorationRecipe, source: Any) -> dict[str, Any]:
    """The recipe's preparation; what it leaves out is that of the training images.

    Raises:
        InputError: The network would see other images than it was trained on.
    """
    from medgen.preparation import Preparation

    own = {"spacing_mm": getattr(source.config, "spacing_mm", None)}
    values = {**PREPARATION, **own, **recipe.preparation}
    used = validated(Preparation, values, "preparation in the recipe")
    if used.normalisation != "percentile" or used.brightest is not None or used.bias_correction:
        msg = (
            "a restoration is scaled back to the scan's values: its preparation must have "
            "normalisation percentile, brightest null and no bias correction"
        )
        raise InputError(msg)
    return values


def _inference(recipe: RestorationRecipe, method: Any, settings: Any) -> dict[str, Any]:
    """The recipe's inference; what it leaves out fits how the network was trained.

    Convolutions see zeros beyond an image's border. A denoiser that learned from patches has seen
    little else, so it is shown tiles of their size; on larger ones it drew a grid. (The networks
    for super-resolution were as good on larger ones.) A hole is shown with its surroundings.
    """
    known: dict[str, Any] = {
        "mode": "2.5d" if method.input_slices > 1 else f"{method.spatial_dims}d"
    }
    if recipe.task == "inpaint":
        known["context_voxels"] = HOLE_CONTEXT
    elif recipe.task == "denoise":
        known |= {"tile": tuple(settings.size), "overlap_fraction": TILE_OVERLAP}
    return {**known, **recipe.inference}


def _known(data: tuple[TrainingData, ...], source: Any) -> tuple[TrainingData, ...]:
    """Data sets with a hash for every subject or group trained on, so that leakage can be seen.

    The recipe names the label maps first, if there are any, and then the scans.
    """
    known = list(data)
    names = tuple(getattr(source, "subject_names", ()))
    place = 0
    if names and known:
        hashes = tuple(hash_name(str(name)) for name in names)
        known[0] = known[0].model_copy(update={"hashed_ids": hashes, "cases": len(hashes)})
        place = 1
    if len(known) > place:
        known[place] = with_facts(known[place], getattr(source, "facts", None) or {})
    return tuple(known)


def soften(method: Any, source: Any, batches: int) -> float:
    """Weaken a network's corrections to the part that fits data it never saw best.

    A network that has learned its training heads by heart goes too far on others. The part with the
    least squared error is ``sum(c * (x - g)) / sum(c * c)``, with ``c`` the correction of the given
    image ``g`` of truth ``x``: a shrinkage as James and Stein's, fitted on held-out batches.

    Args:
        method: A network with ``soften``; changed.
        source: Its training data; ``validation_batch`` gives what it never saw.
        batches: How many to draw; every second one, so that :func:`calibrate` measures on others.

    Returns:
        The part that is kept, at most 1.

    Raises:
        InputError: The network cannot be softened, or its corrections help nowhere.
    """
    import torch

    if not hasattr(method, "soften"):
        raise InputError(f"{type(method).__name__} makes no corrections that could be softened")
    fitting, power = 0.0, 0.0
    middle = method.channels * (method.input_slices // 2)
    for number in range(0, batches, 2):
        batch = source.validation_batch(number)
        with torch.inference_mode():
            made = method.eval()(batch["image"]).output
        given = batch["image"][:, middle : middle + made.shape[1]]
        change = ((made - given) * batch["mask"]).double()
        fitting += float((change * (batch["target"] - given)).sum())
        power += float(change.square().sum())
    if not fitting > 0:
        raise InputError(
            "on held-out data the network's corrections lead away from the truth",
            "Train it longer, on more or on other data.",
        )
    strength = min(1.0, fitting / power)
    method.soften(strength)
    return strength


def calibrate(
    method: Any,
    source: Any,
    recipe: SpreadRecipe,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[SpreadCalibration, dict[str, float]]:
    """The factor by which spreads become half widths of an interval, and what it covers.

    The factor is the conformal quantile (Lei et al., JASA 2018) of ``|error| / spread`` over
    voxels of held-out batches; coverage is measured on others. Voxels of one image resemble each
    other, so the coverage of a single image varies more than the number of voxels suggests.

    Args:
        method: A restoration network.
        source: Its training data; ``validation_batch`` gives what it never saw.
        recipe: The level, and how many batches to draw.
        progress: Called with (done, total) batches.

    Returns:
        The calibration; and ``error`` and ``input_error``, mean absolute errors of the output and
        of the input as it came, and ``coverage_sure`` and ``coverage_unsure``, of the third of
        the voxels with the least and the largest spread.
    """
    parts = list(_errors(method, source, recipe.batches, progress))
    fitted = np.concatenate([part[0] / part[1] for part in parts[::2]])
    errors, spreads, inputs = (np.concatenate([part[n] for part in parts[1::2]]) for n in range(3))
    rank = min(len(fitted), math.ceil((len(fitted) + 1) * recipe.level))
    factor = float(np.partition(fitted, rank - 1)[rank - 1])
    covered = errors <= factor * spreads
    third = max(1, len(spreads) // 3)
    order = np.argsort(spreads, kind="stable")
    calibration = SpreadCalibration(
        level=recipe.level,
        factor=factor,
        coverage=float(covered.mean()),
        data=f"{recipe.batches} held-out batches of the training data's kind, {len(fitted)} voxels "
        f"to fit and {len(errors)} others to measure",
    )
    return calibration, {
        "error": float(errors.mean()),
        "input_error": float(inputs.mean()),
        "coverage_sure": float(covered[order[:third]].mean()),
        "coverage_unsure": float(covered[order[-third:]].mean()),
    }


def _errors(
    method: Any, source: Any, batches: int, progress: Callable[[int, int], None] | None
) -> Iterator[tuple[NDArray[np.float64], ...]]:
    """Absolute error, spread, and the input's error, of a sample of voxels of each batch."""
    import torch

    network = WithSpread(method).eval()
    channels = method.channels
    for number in range(batches):
        batch = source.validation_batch(number)
        with torch.inference_mode():
            made = network.predict(batch["image"])
        inside = batch["mask"].bool().expand_as(batch["target"])
        first = channels * (method.input_slices // 2)
        given = batch["image"][:, first : first + 1].expand_as(batch["target"])
        step = max(1, int(inside.sum()) // VOXELS_PER_BATCH)
        yield tuple(
            values[inside][::step].double().numpy()
            for values in (
                (made["output"] - batch["target"]).abs(),
                made["spread"],
                (given - batch["target"]).abs(),
            )
        )
        if progress is not None:
            progress(number + 1, batches)


def _card(
    recipe: RestorationRecipe,
    run: Run,
    restores: Restores,
    measured: dict[str, float],
    *,
    pictured: bool,
) -> str:
    """The model card."""
    names = {
        "Takes": ", ".join(restores.sources),
        "Makes": ", ".join(restores.targets),
        "Voxels finer by": ", ".join(f"{scale:g}" for scale in restores.scales),
        "Trained on noise": ", ".join(restores.noise),
        "Unit of the result": restores.units or "that of the scan",
    }
    rows = "\n".join(f"| {name} | {text} |" for name, text in names.items() if text)
    picture = (
        f"![Held-out drawn anatomy, not selected: input, result, truth, and, bright, where the "
        f"network expects to be wrong]({SAMPLES})\n\n"
        if pictured
        else ""
    )
    return f"""# {recipe.name} {recipe.version}

{recipe.summary}

{picture}## Intended use

{recipe.intended_use}

What it returns is computed, not measured: never read a finding from it, or from its absence.

## Limitations

{recipe.limitations}

| | |
|---|---|
{rows}

## Training

{training_section(recipe, run.record)}

{data_table(recipe)}

{_softened(measured)}## Uncertainty

{_uncertainty(recipe, restores, measured)}

## Measured

{metrics_table(recipe)}
"""


def _softened(measured: dict[str, float]) -> str:
    """The card's sentence on corrections that are made in part."""
    if "strength" not in measured:
        return ""
    return (
        f"Its corrections are made at {measured['strength']:.0%} of what it learned: that part "
        "came closest, by squared error, to held-out data of the training data's kind.\n\n"
    )


def _uncertainty(recipe: RestorationRecipe, restores: Restores, measured: dict[str, float]) -> str:
    """The card's paragraph on the uncertainty map."""
    spread = restores.spread
    if spread is None:
        return (
            "Not calibrated: it was trained without pairs, so its errors are not known. The map "
            "only says where mirroring the image changes the result."
        )
    as_it_came = (
        "" if recipe.task == "inpaint" else f" (of the input: {measured['input_error']:.4f})"
    )
    return f"""The uncertainty map is the half width of an interval that is to hold the truth in
{spread.level:.0%} of the voxels: {spread.factor:.3g} times the predicted spread. On {spread.data}
it held {spread.coverage:.1%}; {measured["coverage_sure"]:.1%} in the third of the voxels with the
least spread, and {measured["coverage_unsure"]:.1%} in the third with the largest. The mean absolute
error there was {measured["error"]:.4f} of the intensity range{as_it_came}. On scans that differ
from the training data, coverage is lower: see the table below and docs/concepts/invented.md."""
