"""What a scan must be for a model: checked on its header first, then on what was read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import ceil, prod
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.manifest import Manifest
from medgen.volume import Volume

FEWEST_VOXELS = 16
# Bytes that the whole path holds per voxel of the scan at its peak: the voxels as stored and as
# float32, the masks, the three maps that come back, and the labels of findings. Preparation holds
# about as much per voxel of the grid it resamples to.
BYTES_PER_VOXEL = 48
# No scanner's field of view is wider than this along each axis of a head or body part.
LARGEST_EXTENT_MM = 1000.0
# What Python, torch and MONAI occupy before the first voxel.
BASE_GB = 0.5
LARGEST_DEFAULT_GB = 16.0
UNIT_HINT = (
    "Check the voxel size in the header: it may be wrong, or in micrometres or cm instead of mm."
)


def default_memory_gb() -> float:
    """80 % of the memory that is free now, at most 16 GB."""
    return min(LARGEST_DEFAULT_GB, 0.8 * available_memory_gb())


def available_memory_gb() -> float:
    """Memory this process may still take, in GB; infinite where the system does not say."""
    free = float("inf")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024 / 1e9
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    return min(free, container_memory_gb(Path("/sys/fs/cgroup")))


def container_memory_gb(cgroup: Path) -> float:
    """Memory that a container's limit leaves, in GB; infinite without a limit.

    The kernel counts cached files as used, but gives up those not in use (``inactive_file``)
    before it refuses memory.

    Args:
        cgroup: Folder of a control group, version 2.
    """
    limit, used, details = (cgroup / f"memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.exists() and used.exists()) or (value := limit.read_text().strip()) == "max":
        return float("inf")
    lines = details.read_text().splitlines() if details.exists() else []
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return (int(value) - int(used.read_text()) + cached) / 1e9


def scan_memory_gb(shape: Sequence[int], channels: int = 1) -> float:
    """Estimated peak memory in GB of everything but the network, for a scan of this size."""
    return BASE_GB + _voxels_gb(shape, channels)


def _voxels_gb(shape: Sequence[int], channels: int) -> float:
    return prod(shape) * max(channels, 1) * BYTES_PER_VOXEL / 1e9


def prepared_shape(
    shape: Sequence[int], spacing_mm: Sequence[float], manifest: Manifest
) -> tuple[int, ...]:
    """Largest grid that the model's preparation would resample the scan to."""
    from medgen.preparation import Preparation

    target = Preparation.model_validate(manifest.preparation).spacing_mm
    if target is None:
        return tuple(shape)
    return tuple(
        ceil(length * spacing / target) for length, spacing in zip(shape, spacing_mm, strict=True)
    )


def check_memory(
    shape: Sequence[int],
    channels: int,
    limit_gb: float,
    *,
    spacing_mm: Sequence[float] | None = None,
    manifest: Manifest | None = None,
) -> float:
    """Estimated peak memory in GB of everything but the network; refuses what would not fit.

    Args:
        shape: Of the scan.
        channels: Of the scan.
        limit_gb: Most memory to use.
        spacing_mm: Voxel size, if known; with ``manifest``, the grid that the model's
            preparation resamples to is counted too.
        manifest: Of the model.

    Raises:
        InputError: The estimate exceeds the limit.
    """
    need = scan_memory_gb(shape, channels)
    if need > limit_gb:
        size = " x ".join(str(length) for length in shape)
        msg = f"a scan of {size} voxels needs about {need:.1f} GB, the limit is {limit_gb:.3g} GB"
        hint = "Downsample or crop the scan, or raise the limit with --max-memory (GB)."
        raise InputError(msg, hint)
    if spacing_mm is None or manifest is None:
        return need
    prepared = prepared_shape(shape, spacing_mm, manifest)
    need += _voxels_gb(prepared, channels)
    if need > limit_gb:
        msg = (
            f"the scan covers {_extent(shape, spacing_mm)}; model {manifest.name!r} would resample "
            f"it to {' x '.join(map(str, prepared))} voxels, which needs about {need:.1f} GB, "
            f"the limit is {limit_gb:.3g} GB"
        )
        raise InputError(msg, f"{UNIT_HINT} Or raise the limit with --max-memory (GB).")
    return need


def _extent(shape: Sequence[int], spacing_mm: Sequence[float]) -> str:
    lengths = [n * spacing for n, spacing in zip(shape, spacing_mm, strict=True)]
    return " x ".join(f"{length:.0f}" for length in lengths) + " mm"


def check_scan(volume: Volume, manifest: Manifest) -> None:
    """Refuse a scan that the model was not made for.

    Raises:
        InputError: Wrong number of dimensions or channels, wrong modality, too small, or wider
            than any scanner.
    """
    geometry = volume.geometry
    check_kind(geometry.shape, volume.voxels.shape[0], volume.provenance.modality, manifest)
    _check_extent(geometry.shape, geometry.spacing_mm)


def check_facts(facts: Mapping[str, Any], manifest: Manifest, limit_gb: float) -> None:
    """The same, and the memory estimate, for an entry of :func:`medgen.io.describe`.

    Raises:
        InputError: What :func:`check_scan` and :func:`check_memory` refuse.
    """
    shape, spacing = facts["shape"], facts["spacing_mm"]
    check_kind(shape, facts["channels"], facts["modality"], manifest)
    if spacing is not None:
        _check_extent(shape, spacing)
    check_memory(shape, facts["channels"], limit_gb, spacing_mm=spacing, manifest=manifest)


def check_kind(
    shape: Sequence[int], channels: int, modality: str | None, manifest: Manifest
) -> None:
    """Refuse an image of a kind that the model was not made for.

    Raises:
        InputError: Wrong number of dimensions or channels, wrong modality, or too small.
    """
    _check_shape(shape, channels, manifest)
    _check_modality(modality, manifest)


def _check_modality(modality: str | None, manifest: Manifest) -> None:
    accepted = manifest.contract.modalities
    if modality is not None and accepted and modality not in accepted:
        msg = f"model {manifest.name!r} was made for {' or '.join(accepted)}, this is {modality}"
        raise InputError(msg, "`medgen check INPUT` lists the models that take this scan.")


def _check_extent(shape: Sequence[int], spacing_mm: Sequence[float]) -> None:
    lengths = [n * spacing for n, spacing in zip(shape, spacing_mm, strict=True)]
    if len(shape) == 3 and max(lengths) > LARGEST_EXTENT_MM:
        msg = f"the scan covers {_extent(shape, spacing_mm)}: more than 1 m along an axis"
        raise InputError(msg, UNIT_HINT)


def _check_shape(shape: Sequence[int], channels: int, manifest: Manifest) -> None:
    accepted, name = manifest.contract, manifest.name
    size = " x ".join(str(length) for length in shape)
    if len(shape) not in accepted.spatial_dims:
        wanted = " or ".join(f"{dims}-D" for dims in accepted.spatial_dims)
        msg = f"model {name!r} takes {wanted} scans, this one is {len(shape)}-D ({size} voxels)"
        raise InputError(msg, "`medgen check INPUT` lists the models that take this scan.")
    if channels != accepted.channels:
        kind = "grey" if accepted.channels == 1 else f"{accepted.channels}-channel"
        given = "a colour image" if channels in (3, 4) else f"one with {channels} channels"
        msg = f"model {name!r} takes {kind} images, this is {given}"
        convert = "Convert it to grey, or choose" if accepted.channels == 1 else "Choose"
        raise InputError(msg, f"{convert} another model.")
    if sorted(shape)[-2] < FEWEST_VOXELS:
        msg = f"an image of {size} voxels is too small: two sides of {FEWEST_VOXELS} are needed"
        raise InputError(msg, "Give the scan at its original resolution.")


def plan(
    path: Path,
    manifest: Manifest,
    limit_gb: float,
    *,
    frame: int | None = None,
    series: str | None = None,
) -> dict[str, Any]:
    """Header facts of the image that would be used, after all checks that need no pixels.

    Raises:
        InputError: The path cannot be read, or the model would not take what it holds.
    """
    from medgen import io

    facts = io.preview(path, frame=frame, series=series)
    check_facts(facts, manifest, limit_gb)
    return facts
