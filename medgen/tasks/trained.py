"""A trained network, be it the folder of a training run or a model package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.grouped_files import hash_contents
from medgen.run_record import hash_file, hash_name

if TYPE_CHECKING:
    from medgen.preparation import Preparation


@dataclass(frozen=True, eq=False)
class Trained:
    """A network and what is known of its training.

    Attributes:
        name: For tables.
        method: The network, in evaluation mode.
        method_name: In the registry, or of a variant.
        config: The method's settings, with which a fresh network can be built.
        sha256: Of its weights, or of the package.
        data: What the run was trained on, as its configuration says; {} for a package.
        preparation: How images are prepared for it; None: as pictures are, see
            :mod:`medgen.tasks.labelled_images`.
        hashed_ids: SHA-256 of every group (patient) that it was trained on; of a run also of
            every file.
    """

    name: str
    method: Any
    method_name: str
    config: Mapping[str, Any]
    sha256: str
    data: Mapping[str, Any] = field(default_factory=dict)
    preparation: Preparation | None = None
    hashed_ids: frozenset[str] = frozenset()

    def has_seen(self, group: str, file: Path) -> bool:
        """Whether a group of this name was trained on, or this very file."""
        name = hash_name(group)
        return name in self.hashed_ids or hash_contents(file) in self.hashed_ids


def open_trained(where: str | Path) -> Trained:
    """Open the folder of a finished training run, or a package by its name or folder.

    Raises:
        InputError: The run is unfinished or damaged.
        PackageError: There is no such package, or it is damaged.
    """
    folder = Path(where)
    return _of_run(folder) if (folder / "training.json").is_file() else _of_package(where)


def _of_run(folder: Path) -> Trained:
    from medgen.preparation import Preparation
    from medgen.tasks.pack_recipe import open_run

    run = open_run(folder)
    data = run.config.data
    given = data.get("preparation")
    if given is None and data.get("kind") in ("label_maps", "phantoms"):
        given = {"spacing_mm": data.get("spacing_mm", Preparation().spacing_mm)}
    return Trained(
        name=folder.resolve().name,
        method=run.method,
        method_name=run.config.method,
        config=run.config.config,
        sha256=hash_file(folder / "weights.safetensors"),
        data=data,
        preparation=None if given is None else Preparation.model_validate(given),
        hashed_ids=frozenset(_ids(run.record.get("source", {}))),
    )


def _of_package(where: str | Path) -> Trained:
    from medgen.package import load_package

    package = load_package(where)
    manifest = package.manifest
    detects = manifest.task == "detect-anomalies"
    return Trained(
        name=manifest.name,
        method=package.method(),
        method_name=manifest.method,
        config=manifest.config,
        sha256=package.sha256,
        preparation=package.preparation if detects else None,
        hashed_ids=frozenset(h for data in manifest.training_data for h in data.hashed_ids),
    )


def _ids(facts: Mapping[str, Any]) -> Iterator[str]:
    """The hashed groups and files of a set of images, or of all sets of a mixture."""
    yield from facts.get("hashed_ids", ())
    yield from facts.get("hashed_files", ())
    for own in facts.get("sets", {}).values():
        yield from _ids(own)
