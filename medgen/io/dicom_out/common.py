"""What all derived objects share: who made them, their UIDs, and how they are written."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from medgen.io.dicom_files import quiet
from medgen.io.dicom_out.source import Reference, Source
from medgen.io.files import atomic_path

RESEARCH_ONLY = "Research use only; not a medical device."
# Distinguishes the series of each kind beside that of the source.
_NUMBERS = {"seg": 91, "pmap": 92, "sr": 93, "sc": 94}
_DESCRIPTIONS = {
    "seg": "medgen anomaly mask (research)",
    "pmap": "medgen anomaly map (research)",
    "sr": "medgen anomaly report (research)",
    "sc": "medgen anomaly overview (research)",
}


@dataclass(frozen=True)
class Producer:
    """What made the results.

    Attributes:
        model: Name of the model.
        version: Its version.
        sha256: Hash that identifies the model and all its files.
    """

    model: str
    version: str
    sha256: str

    @property
    def software(self) -> str:
        """``medgen`` and its version."""
        return f"medgen {version('medgen')}"

    @property
    def algorithm(self) -> str:
        """Name of the program and the model, at most 64 characters."""
        return f"medgen {self.model}"[:64]


class Written(NamedTuple):
    """An object that was written, for others to cite."""

    class_uid: str
    instance_uid: str
    series_uid: str


@dataclass(frozen=True)
class Identity:
    """Series and instance of a new object."""

    kind: str
    series_uid: str
    series_number: int
    instance_uid: str
    entropy: tuple[str, ...]

    def uid(self, purpose: str) -> str:
        """Another UID inside the object; the same for the same object and purpose."""
        return str(generate_uid(entropy_srcs=[*self.entropy, purpose]))


def identity(source: Source, producer: Producer, kind: str, content: bytes) -> Identity:
    """UIDs that depend on nothing but the source, the model and the content.

    The same result filed twice is the same object, and another threshold makes a second object in
    the same series.
    """
    pictures = "".join(f"{uid}:{frame};" for _, uid, frame in source.references)
    series = (source.series_uid, pictures, producer.sha256, kind)
    own = (*series, producer.software, hashlib.sha256(content).hexdigest())
    number = source.series_number * 100 if 0 < source.series_number < 10**6 else 0
    return Identity(
        kind=kind,
        series_uid=str(generate_uid(entropy_srcs=[*series, "series"])),
        series_number=number + _NUMBERS[kind],
        instance_uid=str(generate_uid(entropy_srcs=[*own, "instance"])),
        entropy=own,
    )


def equipment(identity: Identity, producer: Producer) -> dict[str, Any]:
    """Arguments that every class of highdicom takes."""
    return {
        "series_instance_uid": identity.series_uid,
        "series_number": identity.series_number,
        "series_description": _DESCRIPTIONS[identity.kind],
        "sop_instance_uid": identity.instance_uid,
        "instance_number": 1,
        "manufacturer": "medgen",
        "manufacturer_model_name": "medgen",
        "software_versions": software_versions(producer),
        "device_serial_number": producer.sha256,
        "specific_character_set": "ISO_IR 192",
    }


def description(kind: str) -> str:
    """SeriesDescription of a kind of object."""
    return _DESCRIPTIONS[kind]


def software_versions(producer: Producer) -> tuple[str, str]:
    """Of the program and the model."""
    return producer.software, f"{producer.model} {producer.version}"[:64]


def reference_item(reference: Reference, *, same_pixels: bool) -> Dataset:
    """Item of a Source Image Sequence for one derived frame (PS3.3 C.7.6.16.2.6)."""
    item = Dataset()
    item.ReferencedSOPClassUID = reference.class_uid
    item.ReferencedSOPInstanceUID = reference.instance_uid
    if reference.frame is not None:
        item.ReferencedFrameNumber = reference.frame
    item.SpatialLocationsPreserved = "YES" if same_pixels else "NO"
    item.PurposeOfReferenceCodeSequence = [
        code("121322", "DCM", "Source image for image processing operation")
    ]
    return item


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """A coded value (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def cite(dataset: Dataset, source: Source) -> None:
    """Name the source objects, for the whole object (PS3.3 C.12.2, C.7.6.1)."""
    references = []
    for instance_uid, class_uid in source.instances.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = class_uid, instance_uid
        references.append(item)
    series = Dataset()
    series.SeriesInstanceUID = source.series_uid
    series.ReferencedInstanceSequence = references
    dataset.ReferencedSeriesSequence = [series]


def cite_frames(dataset: Dataset, source: Source) -> None:
    """Put the true references where highdicom cited stand-ins, and the frames in their order.

    highdicom stores the frames against the normal of the slices. Some readers put the first frame
    at the lowest place along it whatever the frame says, so that is the order used here. The
    caller sets the pixels in the order of ``source.planes``.
    """
    frames = {_stand_in(frame): frame for frame in dataset.PerFrameFunctionalGroupsSequence}
    dataset.PerFrameFunctionalGroupsSequence = [frames[n] for n in range(len(source.planes))]
    for place, (plane, frame) in enumerate(
        zip(source.planes, dataset.PerFrameFunctionalGroupsSequence, strict=True)
    ):
        item = reference_item(plane.reference, same_pixels=plane.same_pixels)
        frame.DerivationImageSequence[0].SourceImageSequence = [item]
        content = frame.FrameContentSequence[0]
        values = np.atleast_1d(content.DimensionIndexValues).tolist()
        content.DimensionIndexValues = [*values[:-1], place + 1]
    cite(dataset, source)
    dataset.SourceImageSequence = [
        reference_item(Reference(class_uid, uid, None), same_pixels=source.planes[0].same_pixels)
        for uid, class_uid in source.instances.items()
    ]


def _stand_in(frame: Dataset) -> int:
    """Which stand-in a frame cites, from 0 (see :meth:`Source.stand_ins`)."""
    cited = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    return int(cited.split(".")[-1]) - 1


def finish(dataset: Dataset, source: Source, identity: Identity) -> None:
    """What highdicom leaves out or draws at random."""
    if source.synthetic:
        dataset.SyntheticData = "YES"
    dataset.ContentQualification = "RESEARCH"
    for organisation in dataset.get("DimensionOrganizationSequence", ()):
        organisation.DimensionOrganizationUID = identity.uid("dimensions")
    for index in dataset.get("DimensionIndexSequence", ()):
        index.DimensionOrganizationUID = identity.uid("dimensions")


def save(
    dataset: Dataset, path: str | os.PathLike[str], identity: Identity, *, overwrite: bool
) -> Written:
    """Write one object, complete or not at all."""
    with atomic_path(path, overwrite) as temporary:
        dataset.save_as(Path(temporary), enforce_file_format=True)
    return Written(str(dataset.SOPClassUID), identity.instance_uid, identity.series_uid)


_ONE_AT_A_TIME = threading.RLock()  # what is set and set back here belongs to the whole process


@contextmanager
def discreet() -> Iterator[None]:
    """Keep what the libraries say about values, which may name a patient, out of every log.

    Values are taken over as they are; what can be repaired has been (see
    :mod:`~medgen.io.dicom_out.patient`).
    """
    with _ONE_AT_A_TIME, _silenced():
        yield


@contextmanager
def _silenced() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    levels = [logger.level for logger in loggers]
    writing = config.settings.writing_validation_mode
    reading = config.settings.reading_validation_mode
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        config.settings.writing_validation_mode = config.IGNORE
        config.settings.reading_validation_mode = config.IGNORE
        with quiet():
            yield
    finally:
        config.settings.writing_validation_mode = writing
        config.settings.reading_validation_mode = reading
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
