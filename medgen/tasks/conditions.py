"""Which images are wanted, and which model makes them. Needs no torch.

A condition is called ``name`` or ``name:attribute``: ``lesion`` stands for all of ``lesion:flair``,
``lesion:t1`` and ``lesion:t2``, and a contrast narrows them to one attribute.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from medgen.errors import InputError
from medgen.manifest import Manifest
from medgen.package import ModelPackage, list_packages, load_package


def conditions_by_model() -> dict[str, tuple[str, ...]]:
    """The conditions of each model that makes images."""
    return {
        name: entry.synthesis.condition_names
        for name, _, entry in list_packages()
        if isinstance(entry, Manifest) and entry.synthesis is not None
    }


def choose_model(wanted: Sequence[str], contrast: str | None = None) -> str:
    """The only model that has all these conditions (or, with none asked for, the only one).

    Raises:
        InputError: There is none, or there are several; lists what there is.
    """
    models = conditions_by_model()
    if not models:
        msg = "there is no model here that makes images"
        raise InputError(msg, "Set MEDGEN_MODELS to a folder that holds one, or train one.")
    able = [name for name, known in models.items() if _has_all(known, wanted, contrast)]
    if len(able) == 1:
        return able[0]
    asked = " and ".join([*map(repr, wanted), *([f"contrast {contrast!r}"] if contrast else [])])
    if able:
        msg = f"several models make images{f' of {asked}' if asked else ''}: {', '.join(able)}"
        raise InputError(msg, "Choose one with --model.")
    known = {name for names in models.values() for name in _askable(names)}
    listed = "; ".join(f"{model}: {', '.join(names) or 'none'}" for model, names in models.items())
    lacking = [name for name in wanted if name not in known]
    question = _did_you_mean(lacking[0], known) if lacking else ""
    if lacking:
        msg = f"no model has the condition {lacking[0]!r}.{question}"
    else:
        msg = f"no model has all of {asked}"
    raise InputError(msg, f"Conditions of each model: {listed}.")


def resolve_conditions(
    package: ModelPackage, wanted: Sequence[str], contrast: str | None = None
) -> tuple[int | None, ...]:
    """Numbers of the conditions to be made in turn; all if none is asked for.

    Args:
        package: A model that makes images.
        wanted: ``name`` or ``name:attribute``; a name alone stands for all of its attributes.
        contrast: Only conditions with this attribute.

    Returns:
        Their numbers in the order asked for; ``(None,)`` for a model without conditions.

    Raises:
        InputError: A condition or contrast is unknown, or the model has none.
    """
    names, model = package.synthesis.condition_names, package.manifest.name
    if not names:
        if wanted or contrast:
            asked = f"condition {wanted[0]!r}" if wanted else f"contrast {contrast!r}"
            msg = f"model {model!r} has no conditions, but {asked} was asked for"
            raise InputError(msg, "Leave it out, or see `medgen synthesize --list-conditions`.")
        return (None,)
    chosen: list[int] = []
    for name in wanted or names:
        matching = _matching(names, name)
        if not matching:
            question = _did_you_mean(name, _askable(names))
            msg = f"model {model!r} has no condition {name!r}.{question}"
            raise InputError(msg, f"It has: {', '.join(names)}.")
        chosen += [number for number in matching if number not in chosen]
    if contrast is None:
        return tuple(chosen)
    narrowed = tuple(number for number in chosen if attribute(names[number]) == contrast)
    if narrowed:
        return narrowed
    known = dict.fromkeys(a for number in chosen if (a := attribute(names[number])))
    question = _did_you_mean(contrast, known)
    msg = f"model {model!r} has no contrast {contrast!r} of these conditions.{question}"
    raise InputError(msg, f"There is: {', '.join(known) or 'no contrast to choose from'}.")


def find_model(
    model: str | Path | ModelPackage | None, wanted: Sequence[str], contrast: str | None = None
) -> ModelPackage:
    """The model named, or else the only one that has the conditions.

    Raises:
        InputError: No such model, it makes no images, or the choice is not clear.
    """
    if isinstance(model, ModelPackage):
        _ = model.synthesis  # refuses a model for another task
        return model
    return load_package(choose_model(wanted, contrast) if model is None else model, "synthesize")


def attribute(name: str) -> str:
    """What stands after the colon; empty if there is none."""
    return name.partition(":")[2]


def _matching(names: Sequence[str], wanted: str) -> list[int]:
    return [n for n, name in enumerate(names) if wanted in (name, name.partition(":")[0])]


def _has_all(names: Sequence[str], wanted: Sequence[str], contrast: str | None) -> bool:
    found = [_matching(names, name) for name in wanted]
    if contrast is None or not all(found):
        return all(found)
    chosen = [number for part in found for number in part] or range(len(names))
    return any(attribute(names[number]) == contrast for number in chosen)


def _askable(names: Iterable[str]) -> list[str]:
    """Everything a person may ask for: whole names, and names without the attribute."""
    return list(dict.fromkeys(part for name in names for part in (name.partition(":")[0], name)))


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.4)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
