"""Steps of restoration that follow each other in memory: denoise, then refine, then fill, ...

Each step works on the result of the one before; nothing is written in between. A step is a plain
description, so that a pipeline can name it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from medgen.config import Config
from medgen.manifest import Restored
from medgen.volume import Provenance, Volume

if TYPE_CHECKING:
    from medgen.package import ModelPackage
    from medgen.tasks.restoration import Restoration

_MODEL = "Name or folder of a model package, or name of a method without training."


class InpaintStep(Config):
    """Fill what does not belong into a healthy scan, as ``medgen inpaint`` does."""

    name: Literal["inpaint"]
    model: str = Field("biharmonic", description=_MODEL)
    remove_anomalies: bool = Field(False, description="Fill what `detector` finds.")
    detector: str = Field("brain-mr", description="Name or folder of the model that finds it.")
    remove_metal: float | None = Field(
        None, description="CT: fill what is brighter than so many HU, and the streaks around it."
    )
    grow_mm: float = Field(0.0, ge=0, description="Fill this far around it, too.")

    @model_validator(mode="after")
    def _fills_something(self) -> InpaintStep:
        if not self.remove_anomalies and self.remove_metal is None:
            raise ValueError("inpaint needs remove_anomalies: true or remove_metal: HU")
        return self


class SuperResolveStep(Config):
    """Give each scan a finer grid, as ``medgen super-resolve`` does."""

    name: Literal["super-resolve"]
    model: str = Field("brain-super-resolution", description=_MODEL)
    scale: float | None = Field(None, description="How many times finer each axis becomes.")
    spacing_mm: float | None = Field(None, description="Voxel size along each axis.")
    isotropic: bool = Field(
        False, description="Make all sides of a voxel as small as its smallest."
    )
    consistency: Literal["noise", "exact", "none"] = Field(
        "noise",
        description="How far coarsening the result gives the scan back: as far as the scan's noise "
        "allows, exactly (with its noise), or as the network has it.",
    )

    @model_validator(mode="after")
    def _says_how_fine(self) -> SuperResolveStep:
        given = [self.scale is not None, self.spacing_mm is not None, self.isotropic]
        if sum(given) != 1:
            raise ValueError("super-resolve needs one of scale, spacing_mm and isotropic: true")
        return self


class DenoiseStep(Config):
    """Take noise out, as ``medgen denoise`` does."""

    name: Literal["denoise"]
    model: str = Field("brain-denoise", description=_MODEL)
    strength: float = Field(1.0, gt=0, le=1, description="Part of the noise to take out.")


class TranslateStep(Config):
    """Make an image of another contrast or modality, as ``medgen translate`` does."""

    name: Literal["translate"]
    model: str = Field("brain-t1-translation", description=_MODEL)
    to: str | None = Field(
        None, description="What to make, such as t2; not needed if the model makes only one."
    )


Step = InpaintStep | SuperResolveStep | DenoiseStep | TranslateStep
AnyStep = Annotated[Step, Field(discriminator="name")]


@dataclass(frozen=True)
class Tools:
    """What steps need and share.

    Attributes:
        packages: Loaded packages by the names that steps give; other names are those of methods
            without training.
        methods: Their networks, ready on a device, by the same names; loaded when absent.
        device: As of every task.
        seed: As of every task.
        max_memory_gb: Most memory that a step may use.
        force: Take scans of contrasts that a model was not trained on, too.
    """

    packages: Mapping[str, ModelPackage] = field(default_factory=dict)
    methods: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"
    seed: int = 0
    max_memory_gb: float | None = None
    force: bool = False


def model_names(
    steps: Sequence[Step],
) -> list[tuple[Literal["detect-anomalies"] | Restored, str]]:
    """Task and name of every model that steps use, in their order, once each."""
    found: list[tuple[Literal["detect-anomalies"] | Restored, str]] = []
    for step in steps:
        if isinstance(step, InpaintStep) and step.remove_anomalies:
            found.append(("detect-anomalies", step.detector))
        found.append((step.name, step.model))
    return list(dict.fromkeys(found))


def run_steps(volume: Volume, steps: Sequence[Step], tools: Tools) -> list[Restoration]:
    """Do one step after another.

    Args:
        volume: The scan.
        steps: At least one.
        tools: Models, and where to compute.

    Returns:
        The result of each step. The last one's ``volume`` is the scan itself, so that its files
        are named after it and cite it.

    Raises:
        InputError: A step cannot use what it gets; says which and why.
    """
    results: list[Restoration] = []
    current = volume
    for step in steps:
        result = _run_step(current, step, tools)
        results.append(result)
        current = _next(current, result)
    notes = [f"{r.verb}: {note}" for r in results[:-1] for note in r.notes]
    timings = {
        f"{number} {r.verb}: {name}": seconds
        for number, r in enumerate(results, 1)
        for name, seconds in r.timings.items()
    }
    if len(results) > 1:
        results[-1] = replace(
            results[-1], volume=volume, notes=(*notes, *results[-1].notes), timings=timings,
            estimated_memory_gb=max(result.estimated_memory_gb for result in results),
        )  # fmt: skip
    return results


def _run_step(volume: Volume, step: Step, tools: Tools) -> Restoration:
    import medgen

    given = step.model_dump(include=_own_fields(step))
    if isinstance(step, InpaintStep):
        given["detector"] = tools.packages.get(step.detector, step.detector)
    task = getattr(medgen, step.name.replace("-", "_"))
    result: Restoration = task(
        volume, tools.packages.get(step.model, step.model), method=tools.methods.get(step.model),
        device=tools.device, seed=tools.seed, max_memory_gb=tools.max_memory_gb,
        force=tools.force, **given,
    )  # fmt: skip
    return result


def _own_fields(step: Step) -> set[str]:
    """What a step tells its task, without what a pipeline adds to it."""
    plain = next(kind for kind in get_args(Step) if isinstance(step, kind))
    return set(plain.model_fields) - {"name", "model"}


def _next(volume: Volume, result: Restoration) -> Volume:
    """What the next step gets."""
    provenance = volume.provenance
    if result.verb == "translate":  # it is no longer what its file and header say
        block = result.model.restoration
        provenance = Provenance(units=block.units if block is not None else None)
    return Volume(result.output[None], result.geometry, provenance)
