"""Model packages: a trained method with everything needed to use it, as plain data.

A package is a folder with ``medgen.json`` (see :mod:`medgen.manifest`), ``weights.safetensors.xz``,
``calibration.safetensors``, ``CARD.md`` and ``golden/``, a tiny scan and the map it must give.
Loading one can only build classes of medgen's own registry: there is no code, pickle or URL in it.
"""

from __future__ import annotations

import difflib
import logging
import lzma
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from medgen.config import Config
from medgen.errors import InputError, PackageError
from medgen.manifest import (
    MANIFEST_NAME,
    Manifest,
    check_files,
    first_problem,
    read_manifest,
)
from medgen.run_record import hash_file, timed
from medgen.volume import Geometry, Provenance, Volume

if TYPE_CHECKING:
    from medgen.inference import Inference, Predicts
    from medgen.preparation import Preparation
    from medgen.scoring import Calibration, Scoring

log = logging.getLogger(__name__)

# Compressed: an eighth smaller, and nothing is lost.
WEIGHTS = "weights.safetensors.xz"
# No network of medgen is near this size; a file that unpacks to more is not one.
LARGEST_WEIGHTS = 2**30
CALIBRATION = "calibration.safetensors"
CARD = "CARD.md"
GOLDEN_INPUT = "golden/input.safetensors"
GOLDEN_EXPECTED = "golden/expected.safetensors"
# Resampling and convolution differ in the last digits between processors, and a voxel on the
# edge of the mask may fall on either side: so nearly all voxels must agree to this much.
GOLDEN_TOLERANCE = 1e-3
GOLDEN_MAX_FRACTION = 1e-3

AnyConfig = TypeVar("AnyConfig", bound=Config)


@dataclass(frozen=True)
class ModelPackage:
    """A package on disk whose files match their hashes.

    Attributes:
        folder: Where it is.
        manifest: What it says about itself.
        sha256: Hash of its manifest, and so of every file: the identity of the model.
    """

    folder: Path
    manifest: Manifest
    sha256: str

    @cached_property
    def preparation(self) -> Preparation:
        """How scans are prepared, the same as in training."""
        from medgen.preparation import Preparation

        return self._parse(Preparation, self.manifest.preparation, "preparation")

    @cached_property
    def inference(self) -> Inference:
        """How the network is run over a whole scan."""
        from medgen.inference import Inference

        return self._parse(Inference, self.manifest.inference, "inference")

    @cached_property
    def scoring(self) -> Scoring:
        """How the network's outputs become an anomaly map."""
        from medgen.scoring import Scoring

        return self._parse(Scoring, self.manifest.scoring, "scoring")

    @cached_property
    def calibration(self) -> Calibration | None:
        """What scores and thresholds mean on normal scans; None if it was never measured."""
        if self.manifest.calibration is None:
            return None
        from safetensors.numpy import load_file

        from medgen.scoring import Calibration

        arrays = load_file(self.folder / CALIBRATION) if self._has(CALIBRATION) else {}
        values = {name: tuple(array.tolist()) for name, array in arrays.items()}
        return self._parse(Calibration, {**self.manifest.calibration, **values}, "calibration")

    def method(self) -> Predicts:
        """The network with its weights, in evaluation mode on the CPU in float32.

        Raises:
            PackageError: The method is unknown, or the weights do not fit it.
        """
        from medgen.methods import build

        try:
            method: Any = build(self.manifest.method, self.manifest.config)
        except InputError as error:
            raise PackageError(
                f"package {self.manifest.name}: {error.message}", error.hint
            ) from error
        except ValidationError as error:
            raise PackageError(self._problem("config", error)) from error
        if self._has(WEIGHTS):
            self._load_weights(method)
        elif method.state_dict():
            raise PackageError(
                f"package {self.manifest.name} has no {WEIGHTS}, but its method needs it"
            )
        method.eval()
        return cast("Predicts", method)

    def _load_weights(self, method: Any) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            unpack = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST_WEIGHTS)
            packed = (self.folder / WEIGHTS).read_bytes()
            weights = load(unpack.decompress(packed, max_length=LARGEST_WEIGHTS))
            # copy_ converts half precision, which halves the download, back to float32.
            method.load_state_dict(weights, strict=True)
        except (SafetensorError, RuntimeError, lzma.LZMAError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            msg = f"package {self.manifest.name}: the weights do not fit method "
            raise PackageError(f"{msg}{self.manifest.method!r}: {reason}") from error

    def _has(self, name: str) -> bool:
        return name in self.manifest.sha256

    def _parse(self, kind: type[AnyConfig], values: Mapping[str, Any], part: str) -> AnyConfig:
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            raise PackageError(self._problem(part, error)) from error

    def _problem(self, part: str, error: ValidationError) -> str:
        return f"package {self.manifest.name}: {part}.{first_problem(error)}"


def search_folders() -> list[Path]:
    """Folders that hold packages: those of ``MEDGEN_MODELS``, then the one inside medgen."""
    listed = os.environ.get("MEDGEN_MODELS", "").split(os.pathsep)
    return [
        *(Path(entry).expanduser() for entry in listed if entry),
        Path(__file__).parent / "models",
    ]


def package_folders() -> dict[str, Path]:
    """Every package that can be found by name; the first folder searched wins."""
    found: dict[str, Path] = {}
    for root in search_folders():
        candidates = [root, *sorted(root.iterdir())] if root.is_dir() else []
        for folder in candidates:
            if (folder / MANIFEST_NAME).is_file():
                found.setdefault(folder.name, folder)
    return found


def list_packages() -> list[tuple[str, Path, Manifest | PackageError]]:
    """Name, folder and manifest of each package, or the error that makes it unusable."""
    listed: list[tuple[str, Path, Manifest | PackageError]] = []
    for name, folder in sorted(package_folders().items()):
        try:
            listed.append((name, folder, read_manifest(folder)[0]))
        except PackageError as error:
            listed.append((name, folder, error))
    return listed


def load_package(name_or_path: str | Path) -> ModelPackage:
    """Find a package by name or path, and check all of its hashes. Does not import torch.

    Raises:
        PackageError: Unknown name (the nearest one is suggested), newer format, unknown key,
            missing, changed or outside file.
    """
    folder = _find(name_or_path)
    manifest, digest = read_manifest(folder)
    check_files(folder, manifest)
    return ModelPackage(folder, manifest, digest)


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    known = package_folders()
    if text in known:
        return known[text]
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    if isinstance(name_or_path, Path) or len(path.parts) > 1:
        msg = f"there is no model package at {path}"
        raise PackageError(msg, "Give the folder that holds medgen.json, or a name.")
    nearest = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.4)
    question = f" Did you mean {nearest[0]!r}?" if nearest else ""
    names = ", ".join(sorted(known)) or "none"
    hint = "`medgen models list` shows all; set MEDGEN_MODELS to a folder that holds more."
    raise PackageError(f"unknown model {text!r}.{question} Known models: {names}.", hint)


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """What a model says about one scan, on the scan's own grid.

    Attributes:
        map: Anomaly map ``(X, Y[, Z])`` float32, 0 outside the brain.
        restored: Healthy image ``(X, Y[, Z])`` float32 in the prepared scale, or None.
        brain_mask: Where the model looked ``(X, Y[, Z])`` bool.
        score: Scan score; larger is more abnormal.
        notes: What the preparation found and did.
        memory_gb: What prediction was estimated to need, in GB.
    """

    map: NDArray[np.float32]
    restored: NDArray[np.float32] | None
    brain_mask: NDArray[np.bool_]
    score: float
    notes: tuple[str, ...]
    memory_gb: float


def run_model(
    package: ModelPackage,
    volume: Volume,
    *,
    method: Predicts | None = None,
    device: str = "cpu",
    max_memory_gb: float | None = None,
    brain_mask: NDArray[np.bool_] | None = None,
    progress: Callable[[int, int], None] | None = None,
    timings: dict[str, float] | None = None,
) -> ScanMaps:
    """The one path from a scan to its anomaly map, for use, calibration and verification alike.

    Args:
        package: The model.
        volume: The scan, ``(C, X, Y[, Z])``.
        method: The package's network, if it is already loaded.
        device: A torch device.
        max_memory_gb: Refuse if prediction would need more than this.
        brain_mask: Brain on the scan's grid, if known; otherwise it is found.
        progress: Called with (done, total) parts of the scan.
        timings: Receives the seconds of each step.

    Raises:
        InputError: The scan cannot be prepared, or needs too much memory.
        PackageError: The package does not fit its method.
    """
    from medgen.inference import estimate_memory_gb, predict_volume
    from medgen.scoring import scan_score, score_map

    timings = {} if timings is None else timings
    with timed(timings, "load model"):
        method = method or package.method()
    with timed(timings, "prepare"):
        prepared = package.preparation.apply(volume, brain_mask)
    inference = package.inference
    if prepared.grid.axis_codes[0] not in "LR":
        # A slice that does not show left and right has no mirror image to average with.
        inference = inference.model_copy(update={"flips": False})
    need = estimate_memory_gb(method, tuple(prepared.image.shape), inference)
    if max_memory_gb is not None:
        need = min(need, max_memory_gb)  # prediction shrinks its batches to fit, or refuses
    log.debug("Prediction needs about %.2f GB of memory.", need)
    with timed(timings, "predict"):
        outputs = predict_volume(
            method, prepared.image, prepared.mask, inference,
            device=device, max_memory_gb=max_memory_gb, progress=progress,
        )  # fmt: skip
    with timed(timings, "score"):
        arrays = {name: np.asarray(value) for name, value in outputs.items()}
        anomaly = score_map(
            np.asarray(prepared.image), arrays, np.asarray(prepared.mask), package.scoring,
            spacing_mm=prepared.grid.spacing_mm,
        )  # fmt: skip
    with timed(timings, "back to the scan's grid"):
        inside = prepared.source_mask
        # Interpolation reaches half a voxel beyond the brain; scores are defined inside it.
        on_scan = np.where(inside, prepared.to_source(anomaly[None])[0], np.float32(0))
        restored = prepared.to_source(arrays["restored"])[0] if "restored" in arrays else None
        score = scan_score(on_scan, inside, volume.geometry.voxel_volume_mm3)
    return ScanMaps(on_scan, restored, inside, score, prepared.notes, need)


def save_package(
    folder: Path,
    method: Any,
    *,
    card: str,
    golden: Volume,
    calibration: Calibration | None = None,
    half_precision: bool = False,
    overwrite: bool = False,
    **manifest: Any,
) -> ModelPackage:
    """Write a package in one move: a folder beside the final one, renamed when complete.

    Args:
        folder: The package's folder; its last part is the name it is found by.
        method: A method of the registry, with the weights to save.
        card: The model card in Markdown.
        golden: A tiny scan; its anomaly map is computed and stored with it.
        calibration: Measured on held-out normal scans.
        half_precision: Store weights as float16 (they are still used as float32).
        overwrite: Replace an existing package.
        **manifest: The other keys of :class:`~medgen.manifest.Manifest`; those that follow from
            the arguments above (method, config, calibration, sha256) are filled in.

    Raises:
        InputError: The folder exists and ``overwrite`` is off.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists already", "Choose another name, or overwrite it.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        msg = f"cannot write {folder}: {error.strerror}"
        raise InputError(msg, "Choose a folder that you may write to.") from error
    try:
        _write_package(draft, method, card, golden, calibration, half_precision, manifest)
        draft.chmod(0o755)
        for path in draft.rglob("*"):  # safetensors writes files that only their owner may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return load_package(folder.resolve())


def _write_package(
    draft: Path,
    method: Any,
    card: str,
    golden: Volume,
    calibration: Calibration | None,
    half_precision: bool,
    values: dict[str, Any],
) -> None:
    from safetensors.numpy import save_file
    from safetensors.torch import save

    (draft / "golden").mkdir()
    (draft / CARD).write_text(card, encoding="utf-8")
    names = [CARD, GOLDEN_INPUT, GOLDEN_EXPECTED]
    weights = {key: value.detach().cpu().contiguous() for key, value in method.state_dict().items()}
    if half_precision:
        weights = {
            key: value.half() if value.is_floating_point() else value
            for key, value in weights.items()
        }
    if weights:
        (draft / WEIGHTS).write_bytes(lzma.compress(save(weights), preset=9))
        names.append(WEIGHTS)
    if calibration is not None:
        summary, arrays = _split_calibration(calibration)
        save_file(arrays, draft / CALIBRATION)
        names.append(CALIBRATION)
        values = {**values, "calibration": summary}
    values = {
        **values,
        "method": _registered_name(method),
        "config": method.config.model_dump(mode="json"),
    }
    scan = {"voxels": np.ascontiguousarray(golden.voxels), "affine": np.array(golden.affine)}
    save_file(scan, draft / GOLDEN_INPUT)
    # The golden map is computed from the weights as stored, hence from the draft itself.
    stored = {name: hash_file(draft / name) for name in names if (draft / name).exists()}
    package = ModelPackage(draft, Manifest(**values, sha256=stored), "")
    save_file({"map": _golden_map(package)}, draft / GOLDEN_EXPECTED)
    hashes = {name: hash_file(draft / name) for name in sorted(names)}
    text = Manifest(**values, sha256=hashes).model_dump_json(indent=2)
    (draft / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def _registered_name(method: Any) -> str:
    """Under which name the registry can build this method again."""
    from medgen.methods import REGISTRY

    home = (type(method).__module__, type(method).__name__)
    found = [name for name, entry in REGISTRY.items() if entry == home]
    if not found:
        raise InputError(f"{home[1]} is not a method of medgen's registry and cannot be packaged")
    return found[0]


def _split_calibration(calibration: Calibration) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Sequences of numbers go into safetensors, the rest into the manifest."""
    values = calibration.model_dump(mode="json")
    arrays = {
        name: np.asarray(value, dtype=np.float64)
        for name, value in values.items()
        if isinstance(value, list)
    }
    return {name: value for name, value in values.items() if name not in arrays}, arrays


def _golden_map(package: ModelPackage) -> NDArray[np.float32]:
    """Anomaly map of the golden scan, on its own grid."""
    from safetensors.numpy import load_file

    scan = load_file(package.folder / GOLDEN_INPUT)
    geometry = Geometry(scan["voxels"].shape[1:], scan["affine"])
    return run_model(package, Volume(scan["voxels"], geometry, Provenance())).map


def verify_package(package: ModelPackage) -> float:
    """Check every hash again, every part of the manifest, and the golden case.

    Returns:
        The largest difference between the golden map and the one computed here.

    Raises:
        PackageError: Anything differs by more than the last digits.
    """
    from safetensors.numpy import load_file

    check_files(package.folder, package.manifest)
    missing = [name for name in (CARD, GOLDEN_INPUT, GOLDEN_EXPECTED) if not package._has(name)]
    if missing:
        raise PackageError(f"package {package.manifest.name} has no {', '.join(missing)}")
    calibration = package.calibration
    if calibration and calibration.minimum_volume_mm3 != package.scoring.minimum_volume_mm3:
        msg = "its threshold was calibrated for another smallest finding than its scoring uses"
        raise PackageError(f"package {package.manifest.name}: {msg}")
    expected = load_file(package.folder / GOLDEN_EXPECTED)["map"]
    found = _golden_map(package)
    if found.shape != expected.shape:
        msg = f"the golden map has shape {found.shape}, expected {expected.shape}"
        raise PackageError(f"package {package.manifest.name}: {msg}")
    difference = np.abs(found - expected)
    fraction = float(np.mean(difference > GOLDEN_TOLERANCE))
    # Written so that a NaN anywhere fails too.
    if not (np.isfinite(found).all() and fraction <= GOLDEN_MAX_FRACTION):
        msg = (
            f"package {package.manifest.name}: its golden scan gives another map here "
            f"({fraction:.2%} of voxels differ by more than {GOLDEN_TOLERANCE}, "
            f"the largest by {difference.max():.3g})"
        )
        raise PackageError(msg, "Do not use it with this installation; see `medgen info`.")
    return float(difference.max())
