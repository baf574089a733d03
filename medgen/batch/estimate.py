"""What a cohort will need: memory per case from its header, time from a drawn head of its size."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from medgen.errors import InputError
from medgen.volume import Volume

if TYPE_CHECKING:
    from medgen.batch.pipeline import Task
    from medgen.package import ModelPackage
    from medgen.tasks.chain import Step, SuperResolveStep

# A task without a model holds the voxels once or twice.
WITHOUT_MODEL_GB = 0.8
BYTES_WITHOUT_MODEL = 16
# Larger heads are not drawn for an estimate: the time grows with the voxels.
LARGEST_DRAWN = 64**3 * 40


def memory_needs_gb(
    task: Task, packages: Mapping[str, ModelPackage], facts: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Peak memory in GB of each case, from its header.

    Args:
        task: Of the pipeline.
        packages: Its models by the names it gives them.
        facts: Header facts of each case.
    """
    from medgen.batch.pipeline import Detect, Restoring, steps_of

    if not facts or not isinstance(task, Detect | Restoring):
        return [WITHOUT_MODEL_GB + _voxels(fact) * BYTES_WITHOUT_MODEL / 1e9 for fact in facts]
    networks = {name: package.method() for name, package in packages.items()}
    known: dict[tuple[Any, ...], float] = {}
    needs = []
    for fact in facts:
        if not fact.get("shape"):
            needs.append(WITHOUT_MODEL_GB)
            continue
        shape = tuple(fact["shape"])
        spacing = tuple(fact["spacing_mm"] or (1.0,) * len(shape))
        key = (shape, spacing, fact["channels"])
        if key not in known:
            if isinstance(task, Detect):
                known[key] = _detection_gb(packages[task.model], networks[task.model], *key)
            else:
                known[key] = _steps_gb(steps_of(task), packages, networks, shape, spacing)
        needs.append(known[key])
    return needs


def _voxels(fact: Mapping[str, Any]) -> int:
    return prod(fact.get("shape") or (0,)) * int(fact.get("channels", 1))


def _detection_gb(
    package: ModelPackage,
    network: Any,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    channels: int,
) -> float:
    from medgen.inference import estimate_memory_gb
    from medgen.tasks.limits import check_memory, prepared_shape

    scan = check_memory(
        shape, channels, float("inf"), spacing_mm=spacing, manifest=package.manifest
    )
    prepared = prepared_shape(shape, spacing, package.manifest)
    return scan + estimate_memory_gb(network, (channels, *prepared), package.inference)


def _steps_gb(
    steps: Sequence[Step],
    packages: Mapping[str, ModelPackage],
    networks: Mapping[str, Any],
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
) -> float:
    """Of the step that needs most; each gets the grid that the one before makes."""
    from medgen.tasks.chain import InpaintStep, SuperResolveStep

    most = WITHOUT_MODEL_GB
    for step in steps:
        if isinstance(step, InpaintStep) and step.remove_anomalies:
            detector = packages[step.detector], networks[step.detector]
            most = max(most, _detection_gb(*detector, shape, spacing, 1))
        if isinstance(step, SuperResolveStep):
            shape, spacing = _finer(step, shape, spacing)
        package, network = packages.get(step.model), networks.get(step.model)
        most = max(most, _step_gb(step, package, network, shape, spacing))
    return most


def _finer(
    step: SuperResolveStep, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    from medgen.tasks.restoration_plan import plan_finer_grid

    facts = {"shape": shape, "spacing_mm": spacing}
    try:
        fine = plan_finer_grid(
            facts, scale=step.scale, spacing_mm=step.spacing_mm, isotropic=step.isotropic
        ).fine
    except InputError:  # the case will say why it failed
        return shape, spacing
    return fine.shape, fine.spacing_mm


def _step_gb(
    step: Step,
    package: ModelPackage | None,
    network: Any,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
) -> float:
    from medgen.package import restoration_memory_gb
    from medgen.tasks.chain import InpaintStep
    from medgen.tasks.limits import check_memory, prepared_shape

    if package is None:
        return check_memory(shape, 1, float("inf"))
    manifest = package.manifest
    scan = check_memory(shape, 1, float("inf"), spacing_mm=spacing, manifest=manifest)
    channels = 2 if isinstance(step, InpaintStep) else 1  # the hole stands beside the image
    targets = manifest.restoration.targets if manifest.restoration is not None else ()
    return scan + restoration_memory_gb(
        package, (channels, *prepared_shape(shape, spacing, manifest)), method=network,
        target=targets[0] if len(targets) > 1 else None,
    )  # fmt: skip


def seconds_per_case(
    task: Task, packages: Mapping[str, ModelPackage], facts: Sequence[Mapping[str, Any]]
) -> float | None:
    """How long a case of middling size takes here: a head of that size is drawn and worked on.

    Uses the threads of this process. None if there is nothing to measure.
    """
    from medgen.batch.pipeline import Detect, Restoring, steps_of
    from medgen.phantoms import brain
    from medgen.tasks.chain import Tools, run_steps
    from medgen.tasks.detect import detect_anomalies

    sized = sorted((f for f in facts if f.get("shape")), key=lambda f: prod(f["shape"]))
    if not sized:
        return None
    middle = sized[len(sized) // 2]
    shape, spacing = tuple(middle["shape"]), middle["spacing_mm"] or 1.0
    factor = 1.0
    if prod(shape) > LARGEST_DRAWN:
        factor = prod(shape) / LARGEST_DRAWN
        shape = tuple(max(16, int(n / factor ** (1 / len(shape)))) for n in shape)
    head: Volume = brain(shape, spacing_mm=spacing, contrast="flair").image
    networks = {name: package.method() for name, package in packages.items()}

    def once() -> None:
        if isinstance(task, Detect):
            detect_anomalies(head, packages[task.model], method=networks[task.model], device="cpu")
        elif isinstance(task, Restoring):
            run_steps(head, steps_of(task), Tools(packages, networks, "cpu", force=True))

    try:
        once()  # the first one warms up
        start = time.perf_counter()
        once()
    except InputError:  # a head that is drawn cannot stand for every scan: it holds no metal
        return None
    return (time.perf_counter() - start) * factor
