"""What the restoration tasks share: a scan and a model opened and checked, the network run, and
its output turned back into the scan's values.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.classical import CLASSICAL
from medgen.devices import check_device_name, resolve_device
from medgen.errors import PackageError
from medgen.manifest import Contract, Manifest, Restored, Restores
from medgen.package import (
    ModelPackage,
    load_package,
    package_folders,
    packages_for,
    require_task,
    restoration_memory_gb,
    run_restoration,
)
from medgen.preparation import checked_voxels
from medgen.run_record import timed
from medgen.tasks.contrasts import (
    check_contrast,
    check_values,
    contrast_of,
    contrast_of_volume,
)
from medgen.tasks.limits import check_memory, check_scan, default_memory_gb, plan
from medgen.tasks.restoration import Restoration
from medgen.tasks.running import Progress, importing, on_device
from medgen.volume import Geometry, Volume

if TYPE_CHECKING:
    import torch

    from medgen.inference import Predicts

log = logging.getLogger(__name__)

Model = str | Path | ModelPackage


def classical_manifest(verb: Restored, name: str) -> Manifest:
    """A method without training, described as models are.

    Args:
        verb: The task.
        name: Of :data:`medgen.classical.CLASSICAL`.
    """
    return Manifest(
        name=name,
        version="1.0.0",
        task=verb,
        summary=f"{name}, a classical method without training",
        method=name,
        contract=Contract(spatial_dims=(2, 3), modalities=(), body_part=""),
        restoration=Restores(targets=("identity",) if verb == "translate" else ()),
        intended_use="Baseline: what a trained model has to beat.",
    )


@dataclass(frozen=True, eq=False)
class Opened:
    """A scan and a model that fit together.

    Attributes:
        verb: The task.
        volume: The scan as read, one channel.
        package: The model; None for a classical method.
        manifest: Of the model.
        contrast: Of the scan, if its name or header tells.
        method: The package's network, if it was loaded before.
        device: Where to compute.
        wish: The device that was asked for.
        seed: Seed of the run.
        limit_gb: Most memory to use.
        memory_gb: Estimated peak memory of everything but the network.
        notes: What was found, for people.
        timings: Seconds of each step; steps add to it.
    """

    verb: Restored
    volume: Volume
    package: ModelPackage | None
    manifest: Manifest
    contrast: str | None
    method: Predicts | None
    device: str
    wish: str
    seed: int
    limit_gb: float
    memory_gb: float
    notes: tuple[str, ...]
    timings: dict[str, float]

    @cached_property
    def network(self) -> Predicts:
        """The package's network with its weights."""
        assert self.package is not None
        with timed(self.timings, "load model"):
            return self.method or self.package.method()

    @property
    def classical(self) -> Callable[..., NDArray[np.float32]]:
        """The function of a classical method."""
        return CLASSICAL[self.verb][self.manifest.name]

    @property
    def restores(self) -> Restores:
        """What the model says of its task."""
        assert self.manifest.restoration is not None  # the manifest's own check
        return self.manifest.restoration


@dataclass(frozen=True, eq=False)
class Predicted:
    """What a network made of a prepared image, in its scale.

    Attributes:
        output: ``(C, X, Y[, Z])`` float32.
        spread: The predicted scale of its error, same shape.
        device: Where it was computed.
        fallbacks: What could not be done as wished.
        memory_gb: What it was estimated to need.
    """

    output: NDArray[np.float32]
    spread: NDArray[np.float32]
    device: str
    fallbacks: tuple[str, ...]
    memory_gb: float


def find_model(verb: Restored, model: Model) -> tuple[ModelPackage | None, Manifest]:
    """A package, or None and the description of a classical method of that name.

    Raises:
        PackageError: There is no such model, or it was made for something else.
    """
    if isinstance(model, str) and model in CLASSICAL[verb]:
        return None, classical_manifest(verb, model)
    if isinstance(model, str):
        _require_known(verb, model)
    package = model if isinstance(model, ModelPackage) else load_package(model)
    require_task(package, verb)
    return package, package.manifest


def _require_known(verb: Restored, model: str) -> None:
    """Raise if a model is not a folder, and no model of the verb or any other has its name."""
    path = Path(model).expanduser()
    if len(path.parts) > 1 or path.is_dir() or model in package_folders():
        return
    able = [*packages_for(verb), *CLASSICAL[verb]]
    near = difflib.get_close_matches(model, able, n=1)
    question = f" Did you mean {near[0]!r}?" if near else ""
    hint = f"There are: {', '.join(able)}; set MEDGEN_MODELS to a folder that holds more."
    raise PackageError(f"there is no model {model!r} for {verb}.{question}", hint)


def open_scan(
    verb: Restored,
    source: str | Path | Volume,
    model: Model,
    *,
    method: Predicts | None = None,
    device: str = "auto",
    seed: int = 0,
    max_memory_gb: float | None = None,
    frame: int | None = None,
    series: str | None = None,
    force: bool = False,
) -> Opened:
    """Read a scan and check everything that can be known before work begins.

    Args:
        verb: The task.
        source: A file, a DICOM folder, or a volume in memory.
        model: Name or folder of a package, one that is loaded, or a classical method's name.
        method: The package's network, if it is loaded.
        device: ``auto`` (the first CUDA device, else the CPU), ``cpu``, ``cuda[:N]`` or ``mps``.
        seed: Seeds torch.
        max_memory_gb: Refuse scans that would need more (default: 80 % of the free memory, at
            most 16 GB).
        frame: Which image of a 4-D file, from 0.
        series: Which DICOM series of a folder.
        force: Take a scan of another contrast or modality than the model was trained on, too.

    Raises:
        InputError: The scan, the model or the device cannot be used; says why and what to do.
    """
    check_device_name(device)
    package, manifest = find_model(verb, model)
    limit = default_memory_gb() if max_memory_gb is None else max_memory_gb
    timings: dict[str, float] = {}
    notes: tuple[str, ...] = ()
    checked = of_any_modality(manifest) if force else manifest
    contrast = contrast_of_volume(source) if isinstance(source, Volume) else None
    if isinstance(source, Volume):
        volume = source
    else:
        from medgen import io

        with timed(timings, "read and import"):
            facts = plan(Path(source), checked, limit, frame=frame, series=series)
            contrast = contrast_of(facts)
            notes = check_contrast(contrast, facts["modality"], manifest, force=force)
            with importing("torch", "monai.data"):
                volume = io.read(Path(source), frame=frame, series=series)
    check_scan(volume, checked)
    if isinstance(source, Volume):
        modality = volume.provenance.modality
        notes = check_contrast(contrast, modality, manifest, force=force)
    notes += check_values(volume, manifest, force=force)
    if package is None:  # a network's preparation checks them
        checked_voxels(volume)
    need = check_memory(
        volume.geometry.shape, volume.voxels.shape[0], limit,
        spacing_mm=volume.geometry.spacing_mm, manifest=manifest if package else None,
    )  # fmt: skip
    where = resolve_device(device)
    if package is None and where != "cpu":
        where, notes = "cpu", (*notes, f"{manifest.name} runs on the CPU only")
    import torch

    torch.manual_seed(seed)
    return Opened(
        verb=verb, volume=volume, package=package, manifest=manifest, contrast=contrast,
        method=method, device=where, wish=device, seed=seed, limit_gb=limit, memory_gb=need,
        notes=notes, timings=timings,
    )  # fmt: skip


def of_any_modality(manifest: Manifest) -> Manifest:
    """A model's description without the modalities that it was made for."""
    contract = manifest.contract.model_copy(update={"modalities": ()})
    return manifest.model_copy(update={"contract": contract})


def predict(
    opened: Opened,
    image: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    target: str | None = None,
    extra_gb: float = 0.0,
    progress: Progress | None = None,
) -> Predicted:
    """Run the network on a prepared image.

    Args:
        opened: The scan and the model.
        image: ``(C, X, Y[, Z])`` as :func:`medgen.package.run_restoration` takes it.
        mask: ``(1, X, Y[, Z])``, where a result is wanted; everywhere when None.
        target: Of a translation.
        extra_gb: Memory that the task holds besides what was estimated of the scan.
        progress: Called with (done, total) as the network works through the image.

    Raises:
        InputError: It needs more memory than is allowed.
    """
    package, network = opened.package, opened.network
    assert package is not None
    limit = opened.limit_gb - opened.memory_gb - extra_gb
    need = restoration_memory_gb(
        package, tuple(image.shape), method=network, target=target, max_memory_gb=limit
    )
    say_memory(opened.memory_gb + need + extra_gb)

    def run(device: str) -> dict[str, NDArray[np.float32]]:
        return run_restoration(
            package, image, mask, method=network, target=target, device=device,
            max_memory_gb=limit, progress=progress,
        )  # fmt: skip

    with timed(opened.timings, "predict"):
        maps, device, fallbacks = on_device(run, opened.device, opened.wish)
    return Predicted(maps["output"], maps["spread"], device, fallbacks, need + extra_gb)


def say_memory(estimated_gb: float) -> None:
    """Tell people what a task is about to take, before it does."""
    log.info("Takes up to %.2g GB of memory (estimated)", estimated_gb)


def to_values(
    output: NDArray[np.float32], scaled: tuple[float, float], restores: Restores
) -> NDArray[np.float32]:
    """A network's output in the scan's own values, or in the fixed unit that the model states.

    Args:
        output: In the network's scale; changed in place.
        scaled: The values of the scan that became 0 and 1.
        restores: The model's block.
    """
    low, high = restores.value_range or scaled
    output *= np.float32(high - low)
    output += np.float32(low)
    return output


def to_half_width(
    spread: NDArray[np.float32], scaled: tuple[float, float], restores: Restores
) -> NDArray[np.float32]:
    """Predicted spreads as half widths of the calibrated interval, in the unit of the output.

    Args:
        spread: In the network's scale; changed in place.
        scaled: The values of the scan that became 0 and 1.
        restores: The model's block; without a calibration the spread is only scaled.
    """
    low, high = restores.value_range or scaled
    factor = restores.spread.factor if restores.spread is not None else 1.0
    spread *= np.float32((high - low) * factor)
    return spread


def in_type_of(values: NDArray[np.float32], scan: NDArray[Any]) -> NDArray[Any]:
    """Values in the number type of the scan: rounded and kept in its range if it counts."""
    if not np.issubdtype(scan.dtype, np.integer):
        return values.astype(scan.dtype, copy=False)
    limits = np.iinfo(scan.dtype)
    return np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max).astype(scan.dtype)


def restoration_of(
    opened: Opened,
    kind: str,
    output: NDArray[Any],
    *,
    geometry: Geometry | None = None,
    before: NDArray[Any] | None = None,
    uncertainty: NDArray[np.float32] | None = None,
    invented: NDArray[np.bool_] | None = None,
    measures: Mapping[str, float | str] | None = None,
    notes: tuple[str, ...] = (),
    predicted: Predicted | None = None,
) -> Restoration:
    """The result, with everything that is known of the scan, the model and the run.

    Args:
        opened: The scan and the model.
        kind: Word for the result in file names.
        output: ``(X, Y[, Z])`` on ``geometry``.
        geometry: The grid of the result; the scan's if None.
        before: The scan on that grid; as read if None.
        uncertainty: As :func:`to_half_width` gives it, on that grid.
        invented: Voxels computed without data of their own.
        measures: What was measured on the result.
        notes: More of what was found and done.
        predicted: How the network ran, if one did.
    """
    spread = opened.restores.spread
    notes = (*opened.notes, *notes)
    if uncertainty is not None and spread is None:
        notes += ("the model's uncertainty was not calibrated: it only says where it is larger",)
    fallbacks = predicted.fallbacks if predicted is not None else ()
    return Restoration(
        verb=opened.verb,
        kind=kind,
        volume=opened.volume,
        output=output,
        geometry=geometry or opened.volume.geometry,
        before=opened.volume.voxels[0] if before is None else before,
        uncertainty=uncertainty,
        level=spread.level if uncertainty is not None and spread is not None else None,
        invented=invented,
        model=opened.manifest,
        model_sha256=opened.package.sha256 if opened.package is not None else "",
        measures=dict(measures or {}),
        notes=(*notes, *fallbacks),
        fallbacks=fallbacks,
        timings=opened.timings,
        device=predicted.device if predicted is not None else "cpu",
        seed=opened.seed,
        estimated_memory_gb=opened.memory_gb
        + (predicted.memory_gb if predicted is not None else 0.0),
    )
