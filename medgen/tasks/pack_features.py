"""Package a feature extractor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medgen.errors import InputError
from medgen.manifest import Contract
from medgen.package import ModelPackage, save_package
from medgen.tasks.pack_recipe import (
    Recipe,
    Run,
    data_table,
    metrics_table,
    training_section,
    with_facts,
)

GOLDEN_SIZE = 64


class FeaturesRecipe(Recipe):
    """What images a feature extractor takes."""

    task: Literal["features"]
    contract: Contract


def pack_extractor(
    run: Run,
    recipe: FeaturesRecipe,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ModelPackage:
    """Write the package of a trained extractor.

    Raises:
        InputError: The run trained no extractor, or the folder exists.
    """
    if not hasattr(run.method, "features"):
        raise InputError(f"method {run.config.method!r} measures no features of images")
    # Sets in the order of the configuration; the recipe names them in the same order.
    sets = [*run.record.get("source", {}).get("sets", {}).values()]
    data = recipe.training_data
    if len(sets) == len(data):
        data = tuple(with_facts(d, facts) for d, facts in zip(data, sets, strict=True))
    recipe = recipe.model_copy(update={"training_data": data})
    described: dict[str, Any] = {
        **recipe.described(), "task": "features", "contract": recipe.contract,
    }  # fmt: skip
    return save_package(
        output,
        run.method,
        card=_card(recipe, run),
        golden={"image": _golden(run.method.channels)},
        half_precision=True,
        overwrite=overwrite,
        **described,
    )


def _golden(channels: int) -> Any:
    """Two smooth drawn images ``(2, C, X, Y)``: what an extractor sees has edges, noise has not."""
    from medgen.phantoms import brain

    found = [
        brain((GOLDEN_SIZE, GOLDEN_SIZE), spacing_mm=3.5, seed=seed, contrast="flair").image
        for seed in (0, 1)
    ]
    images = np.stack([image.voxels[0] for image in found]).astype(np.float32)
    scaled = (2 * images / images.max() - 1)[:, None]
    return np.repeat(scaled, channels, axis=1)


def _card(recipe: FeaturesRecipe, run: Run) -> str:
    return f"""# {recipe.name} {recipe.version}

{recipe.summary}

## Intended use

{recipe.intended_use}

## Limitations

{recipe.limitations}

## Training

{training_section(recipe, run.record)}

{data_table(recipe)}

## Measured

{metrics_table(recipe)}
"""
