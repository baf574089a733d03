"""Translate: what a scan would look like in another contrast or modality."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.manifest import Manifest, Restored
from medgen.run_record import timed
from medgen.tasks.restoration import DEFAULT_MODELS, Restoration
from medgen.tasks.restoration_scan import (
    Model,
    Opened,
    find_model,
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

VERB: Restored = "translate"


def translate(
    source: str | Path | Volume,
    model: Model = DEFAULT_MODELS[VERB],
    *,
    to: str | None = None,
    method: Predicts | None = None,
    device: str = "auto",
    seed: int = 0,
    max_memory_gb: float | None = None,
    frame: int | None = None,
    series: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Restoration:
    """Make another contrast or modality of a scan. All of it is computed; none was measured.

    Args:
        source: A file, a DICOM folder, or a volume in memory; one channel.
        model: Name or folder of a package, one that is loaded, or ``identity``.
        to: The contrast or modality to make; not needed if the model makes only one.
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
        The translation on the scan's grid: in the model's fixed unit if it states one (such as
        HU), else between the scan's own darkest and brightest tissue. A constant background stays
        as it is, or has the least value of the fixed unit. Models that learned without pairs are
        checked: the measures say how much of the scan's structure the result shows.

    Raises:
        InputError: The scan, the model, the target or the device cannot be used; says why and
            what to do.
    """
    _, manifest = find_model(VERB, model)
    target = choose_target(manifest, to)
    opened = open_scan(
        VERB, source, model, method=method, device=device, seed=seed,
        max_memory_gb=max_memory_gb, frame=frame, series=series, force=force,
    )  # fmt: skip
    notes = _refuse_same(opened, target, force=force)
    if opened.package is None:
        say_memory(opened.memory_gb)
        with timed(opened.timings, "translate"):
            output = opened.classical(opened.volume.voxels[0])
        return restoration_of(opened, target, output, notes=notes)
    return _translated(opened, target, notes, progress)


def choose_target(manifest: Manifest, wanted: str | None) -> str:
    """What to make: the target of that name, or the only one.

    Raises:
        InputError: The model does not make it, or makes several and none was asked for.
    """
    assert manifest.restoration is not None  # the manifest's own check
    targets = manifest.restoration.targets
    if targets == ("identity",):  # the baseline stands for any target
        name = (wanted or targets[0]).lower()
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):  # it becomes part of file names
            raise InputError(f"a target is named by letters, digits, - and _, not {wanted!r}")
        return name
    named = f"model {manifest.name!r} makes {', '.join(targets)}"
    if wanted is None:
        if len(targets) == 1:
            return targets[0]
        raise InputError(f"{named}; say which", f"For example --to {targets[0]}.")
    found = {name.lower(): name for name in targets}
    if wanted.lower() in found:
        return found[wanted.lower()]
    near = difflib.get_close_matches(wanted.lower(), found, n=1, cutoff=0.4)
    question = f" Did you mean {found[near[0]]!r}?" if near else ""
    raise InputError(f"{named}, not {wanted!r}.{question}", "`medgen models list` shows others.")


def _refuse_same(opened: Opened, target: str, *, force: bool) -> tuple[str, ...]:
    """Refuse to make of a scan what it is already."""
    if opened.contrast != target.lower():
        return ()
    msg = f"this scan is {target} already, as its name or header says"
    if force:
        return (f"forced: {msg}",)
    raise InputError(msg, "Choose another target with --to, or use --force.")


def _translated(
    opened: Opened, target: str, notes: tuple[str, ...], progress: Progress | None
) -> Restoration:
    assert opened.package is not None
    restores, scan = opened.restores, opened.volume.voxels[0]
    with timed(opened.timings, "prepare"):
        prepared = opened.package.preparation.apply(opened.volume)
    several = len(restores.targets) > 1
    predicted = predict(
        opened, prepared.image.as_tensor(), prepared.mask,
        target=target if several else None, progress=progress,
    )  # fmt: skip
    with timed(opened.timings, "back to the scan's grid"):
        scaled, inside = prepared.ranges[0], prepared.source_mask
        output = to_values(prepared.to_source(predicted.output[:1])[0], scaled, restores)
        background = scan if restores.value_range is None else restores.value_range[0]
        np.copyto(output, background, where=~inside, casting="unsafe")
        uncertainty = to_half_width(prepared.to_source(predicted.spread[:1])[0], scaled, restores)
        uncertainty[~inside] = 0
    measures: dict[str, float | str] = {}
    if not restores.paired:
        with timed(opened.timings, "structure check"):
            measures |= _structure(scan, output, inside)
    return restoration_of(
        opened, target, output, uncertainty=uncertainty, measures=measures,
        notes=(*notes, *prepared.notes), predicted=predicted,
    )  # fmt: skip


def _structure(
    scan: NDArray[np.generic], output: NDArray[np.float32], inside: NDArray[np.bool_]
) -> dict[str, float | str]:
    """How much of the scan's structure the translation shows, and how much it does not have."""
    from medgen.metrics.structure import structure

    found = structure(scan, output, inside)
    values = {
        "edges_kept": found.edges_kept,
        "edges_new": found.edges_new,
        "tissue_dice": found.tissue_dice,
    }
    return {name: "undefined" if value is None else value for name, value in values.items()}
