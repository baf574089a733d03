"""Turn a finished training run into a model package: measure it, describe it, write it.

The recipe is a YAML file beside the training configuration. Its ``task`` says what the model is
for; the rest is in :mod:`~medgen.tasks.pack_detection`, :mod:`~medgen.tasks.pack_synthesis`,
:mod:`~medgen.tasks.pack_features` and :mod:`~medgen.tasks.pack_restoration`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from medgen.config import read_yaml
from medgen.errors import InputError
from medgen.manifest import RESTORATION_TASKS, first_problem
from medgen.package import ModelPackage
from medgen.tasks.pack_detection import DetectionRecipe, pack_detector
from medgen.tasks.pack_features import FeaturesRecipe, pack_extractor
from medgen.tasks.pack_recipe import Recipe, open_run
from medgen.tasks.pack_restoration import RestorationRecipe, pack_restorer
from medgen.tasks.pack_synthesis import SynthesisRecipe, pack_generator

# What a recipe of each task may say, and what makes the package.
TASKS: dict[str, tuple[type[Recipe], Callable[..., ModelPackage]]] = {
    "detect-anomalies": (DetectionRecipe, pack_detector),
    "synthesize": (SynthesisRecipe, pack_generator),
    "features": (FeaturesRecipe, pack_extractor),
    **dict.fromkeys(RESTORATION_TASKS, (RestorationRecipe, pack_restorer)),
}


def read_recipe(path: Path) -> Recipe:
    """Read a package recipe.

    Raises:
        InputError: The file is missing, no YAML, or a key or value is wrong.
    """
    try:
        values: Any = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the package recipe {path}: {error}") from error
    task = values.get("task", "detect-anomalies") if isinstance(values, dict) else None
    if not isinstance(task, str) or task not in TASKS:
        raise InputError(f"{path}: task must be one of {', '.join(TASKS)}, got {task!r}")
    try:
        return TASKS[task][0].model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {first_problem(error)}") from error


def pack(
    run: Path,
    recipe: Recipe,
    output: Path,
    *,
    changes: Sequence[str] = (),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ModelPackage:
    """Measure a trained network on its data and write its package.

    Args:
        run: Folder that ``medgen train`` wrote.
        recipe: What the package says and how it is used.
        output: The package's folder.
        changes: ``data.KEY=VALUE``: where the training data lie now, if not where the run's
            configuration says.
        overwrite: Replace an existing package.
        progress: Called with (done, total) parts of the work.

    Raises:
        InputError: The run is unfinished or damaged, or the folder exists.
    """
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists already", "Choose another name, or use --overwrite.")
    make = next(make for kind, make in TASKS.values() if isinstance(recipe, kind))
    return make(open_run(run, changes), recipe, output, overwrite=overwrite, progress=progress)
