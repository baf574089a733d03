"""Super-resolve: the scan in smaller voxels, with detail that a network expects there.

The scan is interpolated to the finer grid by cubic splines and corrected so that, seen through the
stated point-spread function, it gives the scan back as exactly as the scan's noise allows
(:mod:`medgen.corruption.resolution`). The network predicts what that missed, and the result is
corrected again: what is measured stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from medgen.classical import enlarge, noise_sigma
from medgen.errors import InputError
from medgen.manifest import Restored
from medgen.preparation import checked_voxels
from medgen.run_record import timed
from medgen.tasks.finer_grid import ALIKE, FinerGrid, check_wish, finer_grid
from medgen.tasks.own_voxels import Turn, scale_of, turn_of
from medgen.tasks.restoration import DEFAULT_MODELS, Restoration
from medgen.tasks.restoration_scan import (
    Model,
    Opened,
    open_scan,
    predict,
    restoration_of,
    say_memory,
    to_half_width,
    to_values,
)
from medgen.tasks.running import Progress
from medgen.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

    from medgen.corruption.resolution import Sampling
    from medgen.inference import Predicts

VERB: Restored = "super-resolve"
KIND = "superresolved"
Consistency = Literal["noise", "exact", "none"]
INCONSISTENCY = ("inconsistency_max", "inconsistency_mean")
# Between large voxels anatomy differs as noise does, so part of what is found is not noise. This
# part gave the best images of three real crops with 1, 3 and 6 % of added noise.
BELIEVED = 0.7
# Bytes per voxel of the finer grid besides what the network needs: the interpolated scan, what is
# being added to it, and the intermediate results of working axis by axis.
BYTES_PER_FINE_VOXEL = 12


def super_resolve(
    source: str | Path | Volume,
    model: Model = DEFAULT_MODELS[VERB],
    *,
    scale: float | None = None,
    spacing_mm: float | None = None,
    isotropic: bool = False,
    consistency: Consistency = "noise",
    method: Predicts | None = None,
    device: str = "auto",
    seed: int = 0,
    max_memory_gb: float | None = None,
    frame: int | None = None,
    series: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Restoration:
    """Give a scan a finer voxel grid over the same field of view.

    Exactly one of ``scale``, ``spacing_mm`` and ``isotropic`` must be given.

    Args:
        source: A file, a DICOM folder, or a volume in memory; one channel.
        model: Name or folder of a package, one that is loaded, or ``nearest``, ``linear`` or
            ``cubic``.
        scale: How many times finer along each axis.
        spacing_mm: Voxel size along each axis; axes that are finer already stay as they are.
        isotropic: As fine along each axis as the finest, as for thick slices.
        consistency: Correct a network's result so that coarsening it gives the scan back:
            ``noise``, as far as the noise that is found in the scan allows; ``exact``, which also
            copies and sharpens the noise; ``none``. Interpolation is never corrected.
        method: The package's network, if it is loaded: many scans then share it.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda[:N]`` or ``mps``.
        seed: Seeds torch; prediction draws no random numbers, so results do not depend on it.
        max_memory_gb: Refuse scans that would need more (default: 80 % of the free memory, at
            most 16 GB).
        frame: Which image of a 4-D file, from 0.
        series: Which DICOM series of a folder.
        force: Also take a scan of another contrast or modality than the model was trained on, and
            a finer grid than it was trained for.
        progress: Called with (done, total) as the network works through the scan.

    Returns:
        The finer scan, float32. Its measures tell how far coarsening it is from the scan:
        ``inconsistency_max`` and ``inconsistency_mean`` in the scan's values, the same
        ``_before`` the correction, and the standard deviation of the ``noise`` to compare with.

    Raises:
        InputError: The scan, the model, the device or the grid cannot be used; says why and what
            to do.
    """
    if consistency not in get_args(Consistency):
        msg = f"consistency must be {', '.join(get_args(Consistency))}; got {consistency!r}"
        raise InputError(msg)
    check_wish(scale=scale, spacing_mm=spacing_mm, isotropic=isotropic)
    opened = open_scan(
        VERB, source, model, method=method, device=device, seed=seed,
        max_memory_gb=max_memory_gb, frame=frame, series=series, force=force,
    )  # fmt: skip
    grid = finer_grid(
        opened.volume.geometry, scale=scale, spacing_mm=spacing_mm, isotropic=isotropic
    )
    notes = (grid.note, *_check_scale(opened, grid, force=force))
    fine_gb = _check_memory(opened, grid)
    scan = checked_voxels(opened.volume)[0]
    with timed(opened.timings, "interpolate"):
        before = enlarge(scan, grid.fine.shape)
    if opened.package is None:
        return _interpolated(opened, grid, before, notes, fine_gb)
    return _refined(
        opened, grid, before, notes, fine_gb, consistency=consistency, progress=progress
    )


def _check_scale(opened: Opened, grid: FinerGrid, *, force: bool) -> tuple[str, ...]:
    """Refuse to go further than the model was trained for, or note it.

    Raises:
        InputError: It would, and ``force`` is off.
    """
    trained = opened.restores.scales
    if not trained or max(grid.factors) <= max(trained) * (1 + ALIKE):
        return ()
    msg = (
        f"voxels {max(grid.factors):.3g} times finer were asked for, but model "
        f"{opened.manifest.name!r} was trained for up to {max(trained):g} times"
    )
    if force:
        return (f"forced: {msg}",)
    raise InputError(msg, "Ask for larger voxels, or use --force to try it all the same.")


def _check_memory(opened: Opened, grid: FinerGrid) -> float:
    """What the finer grid needs in GB besides the network; refuses what would not fit.

    Raises:
        InputError: With the scan it exceeds the limit.
    """
    need = prod(grid.fine.shape) * BYTES_PER_FINE_VOXEL / 1e9
    if opened.memory_gb + need > opened.limit_gb:
        size = " x ".join(map(str, grid.fine.shape))
        msg = (
            f"a result of {size} voxels needs about {opened.memory_gb + need:.1f} GB, the limit "
            f"is {opened.limit_gb:.3g} GB"
        )
        raise InputError(msg, "Ask for larger voxels, or raise the limit with --max-memory (GB).")
    return need


def _interpolated(
    opened: Opened,
    grid: FinerGrid,
    before: NDArray[np.float32],
    notes: tuple[str, ...],
    fine_gb: float,
) -> Restoration:
    """The scan interpolated as asked, and how well it agrees with the scan."""
    import torch

    from medgen.corruption.resolution import downsample

    opened = replace(opened, memory_gb=opened.memory_gb + fine_gb)
    say_memory(opened.memory_gb)
    with timed(opened.timings, "interpolate"):
        output = opened.classical(opened.volume.voxels[0], grid.fine.shape)
        scan = torch.from_numpy(opened.volume.voxels[0].astype(np.float32))
        residual = scan - downsample(torch.from_numpy(output), grid.samplings())
    return restoration_of(
        opened, KIND, output, geometry=grid.fine, before=before, notes=notes,
        measures=_measures(residual, grid),
    )  # fmt: skip


def _refined(
    opened: Opened,
    grid: FinerGrid,
    before: NDArray[np.float32],
    notes: tuple[str, ...],
    fine_gb: float,
    *,
    consistency: Consistency,
    progress: Progress | None,
) -> Restoration:
    """What the network makes of the interpolated scan, agreeing with the scan if wanted."""
    import torch

    from medgen.corruption.coarse_patches import LEAST_NOISE
    from medgen.corruption.resolution import correct, downsample

    assert opened.package is not None
    turn = turn_of(grid.fine)
    # Everything stays turned; the degradation is the same from both ends of an axis.
    samplings = [grid.samplings()[axis] for axis in turn.order]
    with timed(opened.timings, "prepare"):
        scale = scale_of(opened.volume, opened.package.preparation)
        image, inside, counts = scale.image(before, turn), None, None
        if scale.foreground is not None:
            shown = enlarge(scale.foreground, grid.fine.shape, order=0) > 0
            inside = torch.from_numpy(np.ascontiguousarray(turn.there(shown)))[None]
            counts = torch.from_numpy(_contiguous(scale.foreground, turn)) > 0
            del shown
        noise = BELIEVED * noise_sigma(opened.volume.voxels[0], scale.foreground)
        # The network was taught on what is consistent as far as noise allows (coarse_patches).
        measured = scale.image(opened.volume.voxels[0], turn)[0]
        residual = measured - downsample(image[0], samplings)
        relative = max(noise / (scale.high - scale.low), LEAST_NOISE)
        correct(image[0], residual, samplings, _damping(residual, counts, samplings, relative))
    predicted = predict(opened, image, inside, extra_gb=fine_gb, progress=progress)
    del image
    limits = (scale.low, scale.high)
    with timed(opened.timings, "consistency"):
        output = to_values(predicted.output[0], limits, opened.restores)
        if inside is not None:
            np.copyto(output, turn.there(before), where=~inside[0].numpy())
        measured = torch.from_numpy(_contiguous(opened.volume.voxels[0], turn))
        result = torch.from_numpy(output)
        residual = measured - downsample(result, samplings)
        measures = {**_measures(residual, grid), "noise": noise}
        if consistency != "none":
            damping = 0.0
            if consistency == "noise":
                damping = _damping(residual, counts, samplings, noise)
            correct(result, residual, samplings, damping)
            after = _measures(measured - downsample(result, samplings), grid)
            measures |= {f"{name}_before": measures[name] for name in INCONSISTENCY} | after
    half = to_half_width(predicted.spread[0], limits, opened.restores)
    return restoration_of(
        opened, KIND, turn.back(output), geometry=grid.fine, before=before,
        uncertainty=turn.back(half), measures=measures, notes=(*notes, scale.note),
        predicted=predicted,
    )  # fmt: skip


def _damping(
    residual: Tensor, counts: Tensor | None, samplings: Sequence[Sampling | None], noise: float
) -> float:
    """How much of a residual is left to noise of a known strength; it is judged where it counts."""
    from medgen.corruption.resolution import noise_damping

    return noise_damping(residual if counts is None else residual[counts], samplings, noise)


def _contiguous(values: NDArray[Any], turn: Turn) -> NDArray[np.float32]:
    """Values of the scan turned as the network sees them; a copy."""
    return np.array(turn.there(values), dtype=np.float32, order="C")


def _measures(residual: Tensor, grid: FinerGrid) -> dict[str, float | str]:
    """The stated degradation, and how far the coarsened result is from the scan."""
    axes = ", ".join(
        f"{coarse:.4g} mm along {code}"
        for coarse, code, factor in zip(
            grid.coarse.spacing_mm, grid.coarse.axis_codes, grid.factors, strict=True
        )
        if factor > 1
    )
    values = (float(residual.abs().max()), float(residual.abs().mean()))
    return {
        "degradation": f"Gaussian, full width at half maximum {axes}",
        **dict(zip(INCONSISTENCY, values, strict=True)),
    }
