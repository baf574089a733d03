"""What a scan must be for a model: checked on its header first, then on what was read."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from medgen.errors import InputError
from medgen.manifest import Manifest
from medgen.volume import Volume

FEWEST_VOXELS = 16
# Bytes that the whole path holds per voxel of the scan at its peak: the voxels as stored and as
# float32, the masks, the two maps that come back, and the labelling of findings.
BYTES_PER_VOXEL = 40
# What Python, torch and MONAI occupy before the first voxel.
BASE_GB = 0.5
LARGEST_DEFAULT_GB = 16.0


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
    limit = Path("/sys/fs/cgroup/memory.max")
    used = Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (value := limit.read_text().strip()) != "max":
        free = min(free, (int(value) - int(used.read_text())) / 1e9)
    return free


def scan_memory_gb(shape: Sequence[int], channels: int = 1) -> float:
    """Estimated peak memory in GB of everything but the network, for a scan of this size."""
    return BASE_GB + prod(shape) * max(channels, 1) * BYTES_PER_VOXEL / 1e9


def check_memory(shape: Sequence[int], channels: int, limit_gb: float) -> float:
    """The estimate of :func:`scan_memory_gb`; refuses a scan that would not fit.

    Raises:
        InputError: The estimate exceeds the limit.
    """
    need = scan_memory_gb(shape, channels)
    if need > limit_gb:
        size = " x ".join(str(length) for length in shape)
        msg = f"a scan of {size} voxels needs about {need:.1f} GB, the limit is {limit_gb:.1f} GB"
        hint = "Downsample or crop the scan, or raise the limit with --max-memory (GB)."
        raise InputError(msg, hint)
    return need


def check_scan(volume: Volume, manifest: Manifest) -> None:
    """Refuse a scan that the model was not made for.

    Raises:
        InputError: Wrong number of dimensions or channels, or too small.
    """
    _check_shape(volume.geometry.shape, volume.voxels.shape[0], manifest)


def check_facts(facts: Mapping[str, Any], manifest: Manifest, limit_gb: float) -> None:
    """The same, and the memory estimate, for an entry of :func:`medgen.io.describe`.

    Raises:
        InputError: Wrong number of dimensions or channels, too small, or too large.
    """
    if facts["shape"] is None:
        return
    _check_shape(facts["shape"], facts["channels"], manifest)
    check_memory(facts["shape"], facts["channels"], limit_gb)
    modality, accepted = facts["modality"], manifest.contract.modalities
    if modality is not None and accepted and modality not in accepted:
        msg = f"model {manifest.name!r} was made for {' or '.join(accepted)}, this is {modality}"
        raise InputError(msg, "`medgen check INPUT` lists the models that take this scan.")


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
        raise InputError(msg, "Convert it to grey, or choose another model.")
    if sorted(shape)[-2] < FEWEST_VOXELS:
        msg = f"an image of {size} voxels is too small: two sides of {FEWEST_VOXELS} are needed"
        raise InputError(msg, "Give the scan at its original resolution.")


def plan(
    path: Path, manifest: Manifest, limit_gb: float, series: str | None = None
) -> list[dict[str, Any]]:
    """Header facts of the image that would be used, after all checks that need no pixels.

    A folder of several series without a choice is left to the reader, which lists them.

    Raises:
        InputError: The path cannot be read, or the model would not take what it holds.
    """
    from medgen import io

    found = io.describe(path)
    if series is not None:
        chosen = [facts for facts in found if series in _names(facts)]
        found = chosen or found
    if len(found) == 1:
        check_facts(found[0], manifest, limit_gb)
    return found


def _names(facts: Mapping[str, Any]) -> tuple[str, str]:
    return str(facts["series_number"]), str(facts["series_uid"])
