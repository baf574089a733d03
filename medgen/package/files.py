"""Packages on disk: finding, checking and loading them."""

from __future__ import annotations

import difflib
import lzma
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic import ValidationError

from medgen.config import Config
from medgen.errors import InputError, PackageError
from medgen.manifest import (
    MANIFEST_NAME,
    Manifest,
    Synthesis,
    Task,
    check_files,
    first_problem,
    read_manifest,
)
from medgen.package.shared import shared_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medgen.inference import Inference, Predicts
    from medgen.preparation import Preparation
    from medgen.scoring import Calibration, Scoring

# Compressed: an eighth smaller, and nothing is lost.
WEIGHTS = "weights.safetensors.xz"
# No network of medgen is near this size; a file that unpacks to more is not one.
LARGEST_WEIGHTS = 2**30
CALIBRATION = "calibration.safetensors"
TRAINING_FEATURES = "training_features.safetensors"
ATTRIBUTES = "attributes.safetensors"
CARD = "CARD.md"
GOLDEN_INPUT = "golden/input.safetensors"
GOLDEN_EXPECTED = "golden/expected.safetensors"

DOES: dict[Task, str] = {
    "detect-anomalies": "finds anomalies",
    "synthesize": "makes images",
    "features": "measures features of images",
    "inpaint": "fills holes in scans",
    "super-resolve": "makes voxels finer",
    "denoise": "removes noise",
    "translate": "makes another contrast",
}

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
        from medgen.scoring import Calibration

        arrays = self.arrays(CALIBRATION)
        values = {name: tuple(array.tolist()) for name, array in arrays.items()}
        return self._parse(Calibration, {**self.manifest.calibration, **values}, "calibration")

    @property
    def synthesis(self) -> Synthesis:
        """What a model that makes images makes.

        Raises:
            PackageError: It makes none.
        """
        require_task(self, "synthesize")
        assert self.manifest.synthesis is not None  # the manifest's own check
        return self.manifest.synthesis

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays in one of the package's safetensors files; empty if it has no such file."""
        from safetensors.numpy import load_file

        return load_file(self.folder / name) if self.has(name) else {}

    def method(self) -> Predicts:
        """The network with its weights, in evaluation mode on the CPU in float32.

        Parts that only training needs (``training_only``) are None.

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
        for name in getattr(method, "training_only", ()):
            setattr(method, name, None)
        if self.has(WEIGHTS):
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
            if self.manifest.extractor is not None:
                weights |= shared_weights(self.manifest.name, self.manifest.extractor, method)
            # copy_ converts half precision, which halves the download, back to float32.
            method.load_state_dict(weights, strict=True)
        except (SafetensorError, RuntimeError, lzma.LZMAError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            msg = f"package {self.manifest.name}: the weights do not fit method "
            raise PackageError(f"{msg}{self.manifest.method!r}: {reason}") from error

    def has(self, name: str) -> bool:
        """Whether the package holds this file."""
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
        Path(__file__).parents[1] / "models",
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


def load_package(name_or_path: str | Path, task: Task | None = None) -> ModelPackage:
    """Find a package by name or path, and check all of its hashes. Does not import torch.

    Args:
        name_or_path: Of the package.
        task: What it must be able to do.

    Raises:
        PackageError: Unknown name (the nearest one is suggested), newer format, unknown key,
            missing, changed or outside file, or a model for another task.
    """
    folder = _find(name_or_path)
    manifest, digest = read_manifest(folder)
    package = ModelPackage(folder, manifest, digest)
    if task is not None:
        require_task(package, task)
    check_files(folder, manifest)
    return package


def packages_for(task: Task) -> list[str]:
    """Names of the packages that do something."""
    return [
        name
        for name, _, entry in list_packages()
        if isinstance(entry, Manifest) and entry.task == task
    ]


def require_task(package: ModelPackage, task: Task) -> None:
    """Refuse a model that was made for something else.

    Raises:
        PackageError: It was; names the models that can do what was asked.
    """
    found = package.manifest.task
    if found == task:
        return
    able = packages_for(task)
    msg = f"model {package.manifest.name!r} {DOES[found]} ({found}); needed is one for {task}"
    hint = f"There are: {', '.join(able)}." if able else f"There is no model for {task} here."
    raise PackageError(msg, hint)


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
