"""The files that make outputs a BIDS data set: its description, and a sidecar beside each image.

BIDS 1.9, "Derived dataset and pipeline description" and "Common file level metadata fields".
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medgen.io.files import atomic_path
from medgen.tasks.detect_files import write_json
from medgen.volume import Volume

BIDS_VERSION = "1.9.0"
# Sidecar keys by the header fact they come from, and what turns its unit into that of BIDS.
_FROM_HEADER = {
    "echo_time_ms": ("EchoTime", 1e-3),
    "repetition_time_ms": ("RepetitionTime", 1e-3),
    "inversion_time_ms": ("InversionTime", 1e-3),
    "field_strength_t": ("MagneticFieldStrength", 1.0),
    "slice_thickness_mm": ("SliceThickness", 1.0),
}
_TEXT_FROM_HEADER = {
    "modality": "Modality",
    "manufacturer": "Manufacturer",
    "model_name": "ManufacturersModelName",
    "scanning_sequence": "ScanningSequence",
    "image_type": "ImageType",
}


def write_description(folder: Path, *, derivative: bool, source: Path | None, name: str) -> None:
    """Write ``dataset_description.json``, and ``.bidsignore`` for what BIDS does not know.

    Args:
        folder: Root of the outputs.
        derivative: Whether they were made from another BIDS data set.
        source: That data set; its name and DOI are cited if it states them.
        name: Of the data set.
    """
    from importlib.metadata import version

    description: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative" if derivative else "raw",
        "GeneratedBy": [{"Name": "medgen", "Version": version("medgen")}],
    }
    if derivative and source is not None:
        description |= _cited(source, folder)
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(folder / "dataset_description.json", overwrite=True) as draft:
        draft.write_text(text, encoding="utf-8")
    ignored = (
        "*.html\n*_thumbnail.png\n*_overview.png\n*.sqlite\nselection*.tsv\nsummary.*\n/run*.json\n"
    )
    with atomic_path(folder / ".bidsignore", overwrite=True) as draft:
        draft.write_text(ignored, encoding="utf-8")


def _cited(source: Path, folder: Path) -> dict[str, Any]:
    """Where the source data set lies as seen from here, and its DOI if it states one."""
    link = os.path.relpath(source.resolve(), folder.resolve()).replace(os.sep, "/")
    try:
        stated = json.loads((source / "dataset_description.json").read_text(encoding="utf-8"))
        doi = str(stated.get("DatasetDOI") or "")
    except (OSError, ValueError, AttributeError):
        doi = ""
    cited: dict[str, Any] = {"DatasetLinks": {"raw": link}}
    return {**cited, "SourceDatasets": [{"DOI": doi}]} if doi else cited


def write_sidecars(draft: Path, names: Sequence[str], source: str) -> None:
    """A JSON file beside each NIfTI output that names the image it was made from.

    Args:
        draft: Folder of the outputs.
        names: Files in it.
        source: Path of the image in the source data set.
    """
    for name in names:
        if name.endswith(".nii.gz"):
            sidecar = {"Sources": [f"bids:raw:{source}"]}
            write_json(draft / f"{name.removesuffix('.nii.gz')}.json", sidecar)


def sidecar_facts(facts: Mapping[str, Any], volume: Volume) -> dict[str, Any]:
    """What is known of a converted image, in the words and units (s, mm, T) of BIDS."""
    found: dict[str, Any] = {}
    for fact, (key, factor) in _FROM_HEADER.items():
        if isinstance(facts.get(fact), int | float):
            found[key] = round(float(facts[fact]) * factor, 9)
    for fact, key in _TEXT_FROM_HEADER.items():
        if facts.get(fact):
            found[key] = facts[fact]
    if volume.provenance.units:
        found["Units"] = volume.provenance.units
    return {**found, "ConversionSoftware": "medgen"}
