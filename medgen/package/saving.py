"""Writing a package: complete, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.manifest import MANIFEST_NAME, Manifest, SharedWeights
from medgen.package.files import (
    CALIBRATION,
    CARD,
    GOLDEN_EXPECTED,
    GOLDEN_INPUT,
    WEIGHTS,
    ModelPackage,
    load_package,
)
from medgen.package.golden import golden_input, golden_output
from medgen.package.shared import without_shared
from medgen.package.weights import compressed, rounded
from medgen.run_record import hash_file
from medgen.volume import Volume

if TYPE_CHECKING:
    from medgen.scoring import Calibration


def save_package(
    folder: Path,
    method: Any,
    *,
    card: str,
    golden: Volume | Mapping[str, NDArray[Any]],
    calibration: Calibration | None = None,
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
    files: Mapping[str, bytes] | None = None,
    half_precision: bool = False,
    overwrite: bool = False,
    **manifest: Any,
) -> ModelPackage:
    """Write a package in one move: a folder beside the final one, renamed when complete.

    Args:
        folder: The package's folder; its last part is the name it is found by.
        method: A method of the registry, with the weights to save.
        card: The model card in Markdown.
        golden: A tiny input: a scan or, for other tasks than detection, the arrays that
            :func:`~medgen.package.golden.golden_output` names. What the model makes of it is
            computed and stored with it.
        calibration: Measured on held-out normal scans.
        arrays: More safetensors files, by their name.
        files: More files, by their name: pictures for the card.
        half_precision: Store weights as float16 of few significant bits, see
            :mod:`medgen.package.weights` (they are still used as float32).
        overwrite: Replace an existing package.
        **manifest: The other keys of :class:`~medgen.manifest.Manifest`; those that follow from
            the arguments above (method, config, calibration, sha256) are filled in.

    Raises:
        InputError: The folder exists and ``overwrite`` is off.
    """
    with _complete(folder, overwrite) as draft:
        (draft / CARD).write_text(card, encoding="utf-8")
        for name, content in (files or {}).items():
            (draft / name).write_bytes(content)
        values = dict(manifest)
        more = dict(arrays or {})
        if calibration is not None:
            values["calibration"], more[CALIBRATION] = _split_calibration(calibration)
        more[GOLDEN_INPUT] = golden_input(golden)
        _write_arrays(draft, more)
        values["extractor"] = _write_weights(draft / WEIGHTS, method, half_precision)
        _write_manifest(draft, method, values)
    return load_package(Path(folder).resolve())


def save_recalibrated(
    folder: Path,
    model: ModelPackage,
    calibration: Calibration,
    *,
    card: str,
    files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    **changes: Any,
) -> ModelPackage:
    """Write a package that differs from its parent in the calibration only.

    Weights and golden case are copied byte by byte, so that it gives the same maps.

    Args:
        folder: The package's folder.
        model: Its parent; it stays as it is.
        calibration: Its own.
        card: The model card in Markdown.
        files: More files, by their name: pictures for the card.
        overwrite: Replace an existing package.
        **changes: Keys of :class:`~medgen.manifest.Manifest` that differ from the parent's.

    Raises:
        InputError: The folder exists and ``overwrite`` is off, or is the parent's own.
    """
    if Path(folder).resolve() == model.folder.resolve():
        msg = f"{folder} is the model that is calibrated: it must stay, as it will be named"
        raise InputError(msg, "Choose another name.")
    with _complete(folder, overwrite) as draft:
        for name in (WEIGHTS, GOLDEN_INPUT, GOLDEN_EXPECTED):
            if model.has(name):
                (draft / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(model.folder / name, draft / name)
        (draft / CARD).write_text(card, encoding="utf-8")
        for name, content in (files or {}).items():
            (draft / name).write_bytes(content)
        values, arrays = _split_calibration(calibration)
        _write_arrays(draft, {CALIBRATION: arrays})
        changed = {**changes, "calibration": values, "sha256": _hashes(draft)}
        old = model.manifest.model_dump(mode="json")
        _write_json(draft, Manifest.model_validate({**old, **changed}))
    return load_package(Path(folder).resolve())


@contextmanager
def _complete(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A draft folder that takes the place of ``folder`` when the block succeeds."""
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
        yield draft
        draft.chmod(0o755)
        for path in draft.rglob("*"):  # safetensors writes files that only their owner may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        if folder.exists():
            shutil.rmtree(folder)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _write_arrays(draft: Path, arrays: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    from safetensors.numpy import save_file

    for name, content in arrays.items():
        (draft / name).parent.mkdir(exist_ok=True)
        save_file(dict(content), draft / name)


def _write_weights(path: Path, method: Any, half_precision: bool) -> SharedWeights | None:
    """The weights that using the method needs, if any, but for those of a shipped extractor."""
    unneeded = tuple(f"{name}." for name in getattr(method, "training_only", ()))
    weights = {
        key: value.detach().cpu().contiguous()
        for key, value in method.state_dict().items()
        if not key.startswith(unneeded)
    }
    weights, extractor = without_shared(method, weights)
    if half_precision:
        weights = {key: rounded(value) for key, value in weights.items()}
    if weights:
        path.write_bytes(compressed(weights))
    return extractor


def _write_manifest(draft: Path, method: Any, values: dict[str, Any]) -> None:
    """The golden output, computed from the weights as stored, and then the manifest."""
    values = {
        **values,
        "method": _registered_name(method),
        "config": method.config.model_dump(mode="json"),
    }
    package = ModelPackage(draft, Manifest(**values, sha256=_hashes(draft)), "")
    _write_arrays(draft, {GOLDEN_EXPECTED: golden_output(package)})
    manifest = Manifest(**values, sha256=_hashes(draft))
    _write_json(draft, manifest)


def _write_json(draft: Path, manifest: Manifest) -> None:
    # What another task needs is left out, so that a detector's manifest has not changed by a byte.
    unused = {
        key
        for key in ("synthesis", "restoration", "parent", "extractor")
        if getattr(manifest, key) is None
    }
    text = manifest.model_dump_json(indent=2, exclude=unused)
    (draft / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def _hashes(draft: Path) -> dict[str, str]:
    files = sorted(path for path in draft.rglob("*") if path.is_file())
    return {path.relative_to(draft).as_posix(): hash_file(path) for path in files}


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
    # Without what is as usual, so that an older medgen, which refuses unknown keys, can read it.
    values = calibration.model_dump(mode="json", exclude_defaults=True)
    arrays = {
        name: np.asarray(value, dtype=np.float64)
        for name, value in values.items()
        if isinstance(value, list)
    }
    return {name: value for name, value in values.items() if name not in arrays}, arrays
