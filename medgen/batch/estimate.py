"""What a cohort will need: memory per case from its header, time from a drawn head of its size."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from medgen.volume import Volume

if TYPE_CHECKING:
    from medgen.package import ModelPackage

# A task without a model holds the voxels once or twice.
WITHOUT_MODEL_GB = 0.8
BYTES_WITHOUT_MODEL = 16
# Larger heads are not drawn for an estimate: the time grows with the voxels.
LARGEST_DRAWN = 64**3 * 40


def memory_needs_gb(
    package: ModelPackage | None, facts: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Peak memory in GB of each case, from its header."""
    if package is None:
        return [
            WITHOUT_MODEL_GB
            + prod(f.get("shape") or (0,)) * f.get("channels", 1) * BYTES_WITHOUT_MODEL / 1e9
            for f in facts
        ]
    from medgen.inference import estimate_memory_gb
    from medgen.tasks.limits import check_memory, prepared_shape

    if not facts:
        return []
    network = package.method()
    known: dict[tuple[Any, ...], float] = {}
    needs = []
    for fact in facts:
        if not fact.get("shape"):
            needs.append(WITHOUT_MODEL_GB)
            continue
        shape, spacing, channels = tuple(fact["shape"]), fact["spacing_mm"], fact["channels"]
        key = (shape, spacing, channels)
        if key not in known:
            scan = check_memory(
                shape, channels, float("inf"), spacing_mm=spacing, manifest=package.manifest
            )
            prepared = shape
            if spacing is not None:
                prepared = prepared_shape(shape, spacing, package.manifest)
            known[key] = scan + estimate_memory_gb(
                network, (channels, *prepared), package.inference
            )
        needs.append(known[key])
    return needs


def seconds_per_case(package: ModelPackage, facts: Sequence[Mapping[str, Any]]) -> float | None:
    """How long a case of middling size takes here: a head of that size is drawn and looked at.

    Uses the threads of this process. None if there is nothing to measure.
    """
    from medgen.phantoms import brain
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
    network = package.method()
    detect_anomalies(head, package, method=network, device="cpu")  # the first one warms up
    start = time.perf_counter()
    detect_anomalies(head, package, method=network, device="cpu")
    return (time.perf_counter() - start) * factor
