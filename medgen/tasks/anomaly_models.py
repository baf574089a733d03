"""What predicts in an evaluation of anomaly detection: packages, runs, and untrained baselines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.inference import Inference
from medgen.scoring import Scoring, equalised
from medgen.tasks.anomaly_study import INVERTED, UNTRAINED, ModelEntry, Study, Unit, config_of
from medgen.training.config import validated

if TYPE_CHECKING:
    from medgen.inference import Predicts
    from medgen.manifest import Manifest
    from medgen.preparation import Preparation, Prepared

Outputs = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Detector:
    """A model, ready to predict.

    Attributes:
        preparation: How scans become its input.
        network: None for the brightness of the image.
        inference: How the network is run over a scan.
        inverted: Of brightness: dark is abnormal.
        shipped: Its package's scoring.
        manifest: Of its package, which says what scans it takes.
        threshold: Its package's calibrated threshold.
        known: Hashes of the subjects that it is known to have seen, of a run also of the files.
        facts: For the tables: ``parameters``, ``sha256``, ``training``.
    """

    preparation: Preparation
    network: Predicts | None = None
    inference: Inference = field(default_factory=Inference)
    inverted: bool = False
    shipped: Scoring | None = None
    manifest: Manifest | None = None
    threshold: float | None = None
    known: frozenset[str] = frozenset()
    facts: dict[str, Any] = field(default_factory=dict)

    def outputs(self, prepared: Prepared, *, device: str, voxels: bool) -> Outputs:
        """What the model says about a prepared scan.

        Args:
            prepared: By :attr:`preparation`.
            device: Where to compute.
            voxels: The brightness of a voxel is its rank in the scan, for maps; else its value,
                for images as a whole: the mean rank is the same in all of them.
        """
        if self.network is None:
            return {"score": self._brightness(prepared, voxels=voxels)}
        from medgen.inference import predict_volume

        found = predict_volume(
            self.network, prepared.image, prepared.mask, self._inference(prepared), device=device
        )
        return {name: np.asarray(value) for name, value in found.items()}

    def memory_gb(self, prepared: Prepared) -> float | None:
        """Estimated peak memory of a prediction; None without a network."""
        if self.network is None:
            return None
        from medgen.inference import estimate_memory_gb

        shape = tuple(prepared.image.shape)
        return estimate_memory_gb(self.network, shape, self._inference(prepared))

    def _inference(self, prepared: Prepared) -> Inference:
        """A slice that does not show left and right has no mirror image to average with."""
        if prepared.grid.axis_codes[0] in "LR":
            return self.inference
        return self.inference.model_copy(update={"flips": False})

    def _brightness(self, prepared: Prepared, *, voxels: bool) -> NDArray[np.float32]:
        image, inside = np.asarray(prepared.image).mean(axis=0), np.asarray(prepared.mask)[0]
        if voxels:
            image = equalised(image, inside)
        image = image.max(initial=1.0) - image if self.inverted else image
        return np.where(inside, image, 0)[None].astype(np.float32)


def detector(study: Study, unit: Unit, run: Path | None = None) -> Detector:
    """The model of a unit.

    Args:
        study: The comparison.
        unit: What is wanted.
        run: Folder of the finished training, for a method.

    Raises:
        InputError: It cannot be loaded.
    """
    if unit.kind == "package":
        return _packaged(unit.source)
    if unit.kind == "run":
        return _of_run(study, Path(unit.source))
    if unit.kind == "method":
        assert run is not None
        return _of_run(study, run)
    if unit.name == UNTRAINED:
        return _untrained(study, unit)
    return Detector(study.preparation, inverted=unit.name == INVERTED)


def _packaged(name: str) -> Detector:
    from medgen.package import load_package

    package = load_package(name, "detect-anomalies")
    network: Any = package.method()
    calibration = package.calibration
    return Detector(
        package.preparation,
        network,
        package.inference,
        shipped=package.scoring,
        manifest=package.manifest,
        threshold=None if calibration is None else calibration.threshold,
        known=_known_to(package.manifest),
        facts={
            "version": package.manifest.version,
            "sha256": package.sha256,
            "parameters": sum(p.numel() for p in network.parameters()),
        },
    )


def _of_run(study: Study, folder: Path) -> Detector:
    from medgen.run_record import hash_file
    from medgen.tasks.pack_recipe import open_run
    from medgen.training.loop import WEIGHTS

    run = open_run(folder)
    record = run.record
    return Detector(
        study.preparation,
        run.method,
        _inference_for(run.method, study),
        known=frozenset(hashes_in(record.get("source", {}))),
        facts={
            "sha256": hash_file(folder / WEIGHTS),
            "parameters": record["parameters"],
            "training": {
                "steps": record["step"],
                "seconds": record["seconds"],
                "images": record["step"] * record["config"]["batch_size"],
            },
        },
    )


def known_to_package(name: str) -> frozenset[str]:
    """Hashes of the subjects that a package was trained or calibrated on."""
    from medgen.package import load_package

    return _known_to(load_package(name, "detect-anomalies").manifest)


def _known_to(manifest: Manifest) -> frozenset[str]:
    known = {one for data in manifest.training_data for one in data.hashed_ids}
    return frozenset(known | set(() if manifest.parent is None else manifest.parent.hashed_ids))


def known_to_run(folder: str) -> frozenset[str]:
    """Hashes of the subjects and files that a run was trained on.

    Raises:
        InputError: It is no finished run.
    """
    from medgen.tasks.pack_recipe import record_of

    return frozenset(hashes_in(record_of(Path(folder)).get("source", {})))


def hashes_in(facts: Any) -> Iterator[str]:
    """Hashes of subjects and files anywhere in what a source says about its data."""
    if isinstance(facts, dict):
        for name, value in facts.items():
            if name in ("hashed_ids", "hashed_files"):
                yield from value
            else:
                yield from hashes_in(value)
    elif isinstance(facts, list):
        for value in facts:
            yield from hashes_in(value)


def _inference_for(method: Any, study: Study) -> Inference:
    """How a network is run over a scan, by what it reads."""
    mode = "3d" if method.spatial_dims == 3 else "2d" if method.input_slices == 1 else "2.5d"
    return validated(Inference, {"mode": mode, **study.inference}, "inference")


def _untrained(study: Study, unit: Unit) -> Detector:
    """The first model or method of the study with its first weights, which know nothing."""
    import torch

    from medgen.methods import build

    name, config, preparation = _first_method(study)
    with torch.random.fork_rng():
        torch.manual_seed(study.seed + unit.seed)
        method: Any = build(name, config)
    for part in getattr(method, "training_only", ()):
        setattr(method, part, None)
    return Detector(
        preparation,
        method.eval(),
        _inference_for(method, study),
        facts={"method": name, "parameters": sum(p.numel() for p in method.parameters())},
    )


def _first_method(study: Study) -> tuple[str, dict[str, Any], Preparation]:
    """Method and settings of the first that was, or will be, trained."""
    if study.methods:
        name, entry = next(iter(study.methods.items()))
        return entry.method or name, config_of(study, name), study.preparation
    from medgen.package import WEIGHTS, load_package
    from medgen.tasks.pack_recipe import open_run

    for model in study.models:
        assert isinstance(model, ModelEntry)
        if model.package is None:
            runs = model.runs or sorted((model.study or Path()).glob("runs/*/training"))
            config = open_run(runs[0]).config
            return config.method, config.config, study.preparation
        package = load_package(model.package, "detect-anomalies")
        if package.has(WEIGHTS):
            return package.manifest.method, package.manifest.config, package.preparation
    raise InputError("none of the models has weights, so none can be untrained")
