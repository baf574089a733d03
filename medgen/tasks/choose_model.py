"""Which of medgen's own detectors takes an image, by what its header says. Imports no torch.

A header does not show the body. So the choice is always said, a picture that could be of two kinds
is refused rather than guessed, and so is what none of the models was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from medgen.errors import InputError
from medgen.package import load_package
from medgen.tasks.limits import check_kind

AUTO = "auto"
# In the order in which a message names them, with what each is for.
DETECTORS = {
    "brain-mr": "brain MR",
    "chest-xray-anomaly": "frontal chest radiographs",
    "histology-anomaly": "H&E tiles of the colon",
}

# What BodyPartExamined says of the same part (DICOM PS3.16, annex L), as scanners write it.
ALSO = {
    "BRAIN": {"HEAD", "SKULL", "HEADNECK", "NEURO"},
    "CHEST": {"THORAX", "LUNG", "CHESTABDOMEN"},
}


class Choice(NamedTuple):
    """A model, and why it was chosen, in a sentence."""

    model: str
    why: str


def choose_detector(facts: Mapping[str, Any]) -> Choice:
    """The model for an image, of an entry of :func:`medgen.io.describe`.

    Raises:
        InputError: No model was made for such an image, or two were.
    """
    shape, channels, modality = facts["shape"], facts["channels"], facts["modality"]
    body_part = facts.get("body_part")
    size = " x ".join(str(length) for length in shape)
    colour = "colour" if channels in (3, 4) else "grey" if channels == 1 else f"{channels}-channel"
    seen = f"{colour} {len(shape)}-D image of {size}"
    seen += f", {modality}" if modality else ""
    seen += f" of {body_part}" if body_part else ""
    fitting, refusals = [], []
    for name in DETECTORS:
        manifest = load_package(name).manifest
        own = manifest.contract.body_part
        try:
            check_kind(shape, channels, modality, manifest)
        except InputError as error:
            refusals.append(error.message)
            continue
        if body_part and own and body_part.upper() not in {own, *ALSO.get(own, ())}:
            refusals.append(f"model {name!r} was made for {own}")
        else:
            fitting.append(name)
    if "brain-mr" in fitting and facts["spacing_mm"] is not None:
        fitting = ["brain-mr"]  # radiographs come as pictures, or say that they are radiographs
    if not fitting:
        raise InputError(
            f"none of medgen's own models takes this {seen}: {'; '.join(refusals)}",
            "Train a model on such images (`medgen train`), or try `--model intensity`, which "
            "takes any grey image.",
        )
    if len(fitting) > 1:
        raise InputError(
            f"this {seen} could be of several kinds: a picture does not say what it shows",
            "Name the model: "
            + ", ".join(f"--model {name} for {DETECTORS[name]}" for name in fitting)
            + ".",
        )
    return Choice(fitting[0], f"{seen}: model {fitting[0]}, for {DETECTORS[fitting[0]]}")
