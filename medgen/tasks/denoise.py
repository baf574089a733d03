"""Denoise: the scan as it would be without noise, on its own voxels and in its own values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medgen.brain import find_foreground
from medgen.classical import noise_sigma
from medgen.errors import InputError
from medgen.manifest import Restored
from medgen.preparation import checked_voxels
from medgen.run_record import timed
from medgen.tasks.own_voxels import scale_of, turn_of
from medgen.tasks.restoration import DEFAULT_MODELS, Restoration
from medgen.tasks.restoration_scan import (
    Model,
    Opened,
    Predicted,
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
    from medgen.inference import Predicts

VERB: Restored = "denoise"


def denoise(
    source: str | Path | Volume,
    model: Model = DEFAULT_MODELS[VERB],
    *,
    strength: float = 1.0,
    method: Predicts | None = None,
    device: str = "auto",
    seed: int = 0,
    max_memory_gb: float | None = None,
    frame: int | None = None,
    series: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Restoration:
    """Take noise out of a scan.

    The scan keeps its voxels: nothing is resampled. A constant background, as around a
    skull-stripped brain, is left as it is; every other voxel is computed.

    Args:
        source: A file, a DICOM folder, or a volume in memory; one channel.
        model: Name or folder of a package, one that is loaded, or ``nlm`` (non-local means),
            ``tv`` (total variation) or ``wavelet``.
        strength: 1 takes out all noise that was found; with less, so much of the change is made,
            and the rest of the noise stays.
        method: The package's network, if it is loaded: many scans then share it.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda[:N]`` or ``mps``.
        seed: Seeds torch; prediction draws no random numbers, so results do not depend on it.
        max_memory_gb: Refuse scans that would need more (default: 80 % of the free memory, at
            most 16 GB).
        frame: Which image of a 4-D file, from 0.
        series: Which DICOM series of a folder.
        force: Also take a scan of another contrast or modality than the model was trained on.
        progress: Called with (done, total) as the network works through the scan.

    Returns:
        The denoised scan, float32, on its own grid. Its measures tell the standard deviation of
        the noise before and after, as far as it is white.

    Raises:
        InputError: The scan, the model or the device cannot be used; says why and what to do.
    """
    if not 0 < strength <= 1:
        raise InputError(f"the strength must be above 0 and at most 1, got {strength:g}")
    opened = open_scan(
        VERB, source, model, method=method, device=device, seed=seed,
        max_memory_gb=max_memory_gb, frame=frame, series=series, force=force,
    )  # fmt: skip
    made = _filter(opened) if opened.package is None else _restore(opened, progress)
    scan, output, uncertainty = opened.volume.voxels[0], made.output, made.uncertainty
    notes = made.notes
    if strength < 1:
        output *= np.float32(strength)
        output += np.float32(1 - strength) * scan
        uncertainty = None  # it is that of the full strength
        notes += (f"strength {strength:g}: the rest of the scan's noise was kept",)
    with timed(opened.timings, "measure"):
        measures: dict[str, float | str] = {
            "noise_before": noise_sigma(scan, made.inside),
            "noise_after": noise_sigma(output, made.inside),
        }
    return restoration_of(
        opened, "denoised", output, uncertainty=uncertainty, measures=measures, notes=notes,
        predicted=made.predicted,
    )  # fmt: skip


class _Denoised(NamedTuple):
    """A scan without noise ``(X, Y[, Z])``, where it was computed (None: everywhere), and how."""

    output: NDArray[np.float32]
    inside: NDArray[np.bool_] | None
    uncertainty: NDArray[np.float32] | None
    predicted: Predicted | None
    notes: tuple[str, ...]


def _filter(opened: Opened) -> _Denoised:
    """By a classical method, for white noise of the standard deviation that is found."""
    voxels = checked_voxels(opened.volume)[0]
    say_memory(opened.memory_gb)
    with timed(opened.timings, "denoise"):
        foreground, background = find_foreground(opened.volume)
        inside = None if background is None else foreground
        sigma = noise_sigma(voxels, inside)
        output = opened.classical(voxels, sigma=sigma)
        if inside is not None:
            np.copyto(output, voxels, where=~inside)
    return _Denoised(output, inside, None, None, (f"noise found: {sigma:.4g}",))


def _restore(opened: Opened, progress: Progress | None) -> _Denoised:
    """By the network, which sees the scan turned and scaled."""
    import torch

    assert opened.package is not None
    scan, turn = opened.volume.voxels[0], turn_of(opened.volume.geometry)
    with timed(opened.timings, "prepare"):
        scale = scale_of(opened.volume, opened.package.preparation)
        image, inside = scale.image(scan, turn), scale.foreground
        mask = None
        if inside is not None:
            mask = torch.from_numpy(np.ascontiguousarray(turn.there(inside)))[None]
    predicted = predict(opened, image, mask, progress=progress)
    del image
    with timed(opened.timings, "back to the scan's values"):
        limits = (scale.low, scale.high)
        output = turn.back(to_values(predicted.output[0], limits, opened.restores))
        if inside is not None:
            np.copyto(output, scan, where=~inside, casting="unsafe")
        half = turn.back(to_half_width(predicted.spread[0], limits, opened.restores))
    return _Denoised(output, inside, half, predicted, (scale.note,))
