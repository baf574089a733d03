"""A model between two others: every weight is interpolated.

Wang et al., "ESRGAN" (2018), section 3.4: between a network trained for small errors and the same
one trained on for images that look real lie networks that trade one for the other, without the
artefacts that mixing their images would show. It needs the second to have started from the first:
weights of two independent trainings mean different things, and nothing between them works.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.manifest import RESTORATION_TASKS
from medgen.package import ModelPackage, save_package
from medgen.package.files import GOLDEN_INPUT

# What the two must agree in, besides their networks.
_SHARED = ("task", "method", "preparation", "inference", "contract")


def blend(
    first: ModelPackage,
    second: ModelPackage,
    weight: float,
    output: Path,
    *,
    overwrite: bool = False,
) -> ModelPackage:
    """Write the model ``(1 - weight) * first + weight * second``.

    It says about itself what the first says, except for what was measured: metrics and the
    calibration of the uncertainty hold for neither and are left out.

    Args:
        first: At weight 0; usually trained for small errors.
        second: At weight 1; usually the same one trained on with a critic.
        weight: 0..1.
        output: Folder of the new package; its last part becomes the name.
        overwrite: Replace an existing package.

    Raises:
        InputError: The weight is outside 0..1, the models differ in more than their weights, or
            the folder exists.
    """
    if not 0 <= weight <= 1:
        raise InputError(f"weight must be between 0 and 1, got {weight:g}")
    _require_alike(first, second)
    a, b = first.manifest, second.manifest
    assert a.restoration is not None  # the manifest's own check
    network: Any = first.method()
    other: Any = second.method()
    network.load_state_dict(interpolate(network.state_dict(), other.state_dict(), weight))
    data = {entry.name: entry for entry in (*b.training_data, *a.training_data)}
    return save_package(
        output,
        network,
        card=_card(first, second, weight, output.name),
        golden=first.arrays(GOLDEN_INPUT),
        half_precision=True,
        overwrite=overwrite,
        name=output.name,
        version=a.version,
        task=a.task,
        summary=f"{1 - weight:.2g} of {a.name} and {weight:.2g} of {b.name}",
        preparation=a.preparation,
        inference=a.inference,
        contract=a.contract.model_dump(),
        restoration=a.restoration.model_copy(update={"spread": None}).model_dump(),
        training_data=tuple(data.values()),
        intended_use=a.intended_use,
    )


def interpolate(first: dict[str, Any], second: dict[str, Any], weight: float) -> dict[str, Any]:
    """``(1 - weight) * first + weight * second`` of two networks' tensors, by name.

    Whole numbers, such as counts of steps, are the first's. The ends are exact.
    """
    import torch

    return {
        name: torch.lerp(value, second[name], weight) if value.is_floating_point() else value
        for name, value in first.items()
    }


def _require_alike(first: ModelPackage, second: ModelPackage) -> None:
    a, b = first.manifest, second.manifest
    if a.task not in RESTORATION_TASKS:
        tasks = ", ".join(RESTORATION_TASKS)
        raise InputError(
            f"model {a.name!r} is one for {a.task}; blended can be those for {tasks}",
            "What else a model holds was measured with its own weights.",
        )
    for part in _SHARED:
        if getattr(a, part) != getattr(b, part):
            raise InputError(
                f"models {a.name!r} and {b.name!r} differ in their {part}: "
                f"{getattr(a, part)} and {getattr(b, part)}",
                "Blend two models of the same kind, of which one was trained on from the other.",
            )
    mine, other = _shapes(first), _shapes(second)
    different = [name for name in {**mine, **other} if mine.get(name) != other.get(name)]
    if different:
        name = different[0]
        raise InputError(
            f"the networks of {a.name!r} and {b.name!r} differ in {name}: "
            f"{mine.get(name)} and {other.get(name)}",
            "Train both with the same settings of the network.",
        )


def _shapes(package: ModelPackage) -> dict[str, tuple[int, ...]]:
    method: Any = package.method()
    return {name: tuple(value.shape) for name, value in method.state_dict().items()}


def _card(first: ModelPackage, second: ModelPackage, weight: float, name: str) -> str:
    rows = "\n".join(
        f"| {share:.3g} | {package.manifest.name} {package.manifest.version} | `{package.sha256}` |"
        for share, package in ((1 - weight, first), (weight, second))
    )
    return f"""# {name}

Every weight is a mean of those of two models (network interpolation; Wang et al., ESRGAN, 2018),
made by `medgen models blend`.

| share | model | SHA-256 |
|---|---|---|
{rows}

Nothing of it was measured: neither its errors nor what its uncertainty map covers. For what it was
trained on and what it must not be used for, see the cards of the two.

Intended use: {first.manifest.intended_use}
"""
