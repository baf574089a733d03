"""Hostile archives: which objects belong together, and which are no images to work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hostile_multiframe import code, enhanced, mosaic
from hostile_objects import (
    Hostile,
    Stack,
    Who,
    classic,
    head,
    header,
    pixels,
    save,
    save_all,
    stack,
    truth,
)  # fmt: skip
from pydicom.dataset import Dataset
from pydicom.uid import (
    ComprehensiveSRStorage,
    ComputedRadiographyImageStorage,
    EncapsulatedPDFStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    KeyObjectSelectionDocumentStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
)

TILT = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])  # an oblique axial, LPS


def _plain(folder: Path, who: Who, values: Any = None, **options: Any) -> Stack:
    """Write a plain series and return what is in it."""
    planes = stack(head(who.seed) if values is None else values, axes=TILT)
    save_all(classic(planes, who, **options), folder)
    return planes


# --- identity --------------------------------------------------------------------------------


def duplicate_uid(folder: Path, seed: int) -> Hostile:
    """Every object twice, byte for byte, under another name."""
    planes = _plain(folder / "a", Who(seed))
    _plain(folder / "b", Who(seed))
    return Hostile(folder, images=(truth(planes),))


def duplicate_content(folder: Path, seed: int) -> Hostile:
    """Every object again with another SOPInstanceUID, as a second export writes it."""
    planes = _plain(folder / "a", Who(seed))
    _plain(folder / "b", Who(seed), key="again")
    return Hostile(folder, images=(truth(planes),))


def two_patients(folder: Path, seed: int) -> Hostile:
    """Two patients with the same series number, files mixed in one folder."""
    return _two(folder, seed, [Who(seed, "one", "s1"), Who(seed, "two", "s2")])


def colliding_uids(folder: Path, seed: int) -> Hostile:
    """Two patients whose study and series carry the same UIDs, as bad anonymisers write."""
    return _two(folder, seed, [Who(seed, "one"), Who(seed, "two")])


def two_series_one_uid(folder: Path, seed: int) -> Hostile:
    """One patient, one SeriesInstanceUID, but two directions of slices."""
    first, second = stack(head(seed), axes=TILT), stack(head(seed + 1), axes=np.roll(TILT, 1, 0))
    save_all(classic(first, Who(seed)), folder, "A")
    save_all(classic(second, Who(seed), key="second", start=13), folder, "B")
    return Hostile(folder, images=(truth(first), truth(second)))


def _two(folder: Path, seed: int, people: list[Who]) -> Hostile:
    images = []
    for number, who in enumerate(people):
        planes = stack(head(seed + number), axes=TILT)
        save_all(classic(planes, who), folder, "AB"[number])
        images.append(truth(planes))
    return Hostile(folder, images=tuple(images))


# --- several volumes in one series -----------------------------------------------------------


def _volumes(
    folder: Path, seed: int, labels: tuple[str, ...], edit: Callable[[Dataset, int], None]
) -> Hostile:
    """One series of a few stacks at the same places, numbered slice by slice."""
    frames = [stack(head(seed + number), axes=TILT) for number in range(len(labels))]
    objects = []
    for number, planes in enumerate(frames):
        for d in classic(planes, Who(seed), key=number):
            d.InstanceNumber = d.InstanceNumber * len(labels) + number
            edit(d, number)
            objects.append(d)
    # Names tell nothing.
    mixed = [objects[n] for n in np.random.default_rng(seed).permutation(len(objects))]
    save_all(mixed, folder)
    return Hostile(folder, images=(truth(*frames, labels=labels),))


def echoes(folder: Path, seed: int) -> Hostile:
    """Three echoes."""

    def edit(d: Dataset, number: int) -> None:
        d.EchoTime, d.EchoNumbers = f"{4.6 * (number + 1):.1f}", number + 1

    return _volumes(folder, seed, ("4.6", "9.2", "13.8"), edit)


def b_values(folder: Path, seed: int) -> Hostile:
    """Diffusion: b 0, 500 and 1000, in the attributes of PS3.3 C.8.13.5.9."""

    def edit(d: Dataset, number: int) -> None:
        d.DiffusionBValue = 500.0 * number
        d.DiffusionDirectionality = "ISOTROPIC" if number else "NONE"

    return _volumes(folder, seed, ("b 0", "b 500", "b 1000"), edit)


def dynamics(folder: Path, seed: int) -> Hostile:
    """Four points in time."""

    def edit(d: Dataset, number: int) -> None:
        d.TemporalPositionIdentifier, d.NumberOfTemporalPositions = number + 1, 4
        d.AcquisitionTime = f"10150{number}"

    return _volumes(folder, seed, ("1", "2", "3", "4"), edit)


def acquisitions(folder: Path, seed: int) -> Hostile:
    """The same scan twice in one series: only AcquisitionNumber tells."""

    def edit(d: Dataset, number: int) -> None:
        d.AcquisitionNumber = number + 1
        d.InstanceNumber = d.InstanceNumber // 2

    return _volumes(folder, seed, ("1", "2"), edit)


def enhanced_of(modality: str, shuffle: bool = False) -> Callable[[Path, int], Hostile]:
    """One enhanced object, its frames in the order of space or in none."""

    def make(folder: Path, seed: int) -> Hostile:
        planes = stack(head(seed), axes=TILT)
        slopes = [] if modality == "CT" else [0.5 + 0.25 * n for n in range(12)]
        d = enhanced([planes], Who(seed), modality=modality, slopes=slopes, shuffle=shuffle)
        save(d, folder / "enhanced")
        image = truth(
            planes, slope=slopes or 1.0, intercept=-1024 if modality == "CT" else 0.0,
            modality=modality,
        )  # fmt: skip
        return Hostile(folder, images=(image,))

    return make


def enhanced_4d(folder: Path, seed: int) -> Hostile:
    """One enhanced object with three b-values."""
    frames = [stack(head(seed + n), axes=TILT) for n in range(3)]
    save(enhanced(frames, Who(seed), b_values=(0, 500, 1000)), folder / "enhanced")
    return Hostile(folder, images=(truth(*frames, labels=("b 0", "b 500", "b 1000")),))


def enhanced_times(folder: Path, seed: int) -> Hostile:
    """One enhanced object with three points in time."""
    frames = [stack(head(seed + n), axes=TILT) for n in range(3)]
    save(enhanced(frames, Who(seed)), folder / "enhanced")
    return Hostile(folder, images=(truth(*frames, labels=("1", "2", "3")),))


def siemens_mosaic(folder: Path, seed: int) -> Hostile:
    """All slices in one picture, with the private header that says how many."""
    planes = stack(head(seed), axes=TILT)
    save(mosaic(planes, Who(seed)), folder / "m")
    return Hostile(folder, images=(truth(planes),))


def mosaic_times(folder: Path, seed: int) -> Hostile:
    """Three mosaics: a series in time."""
    frames = [stack(head(seed + n), axes=TILT) for n in range(3)]
    for number, planes in enumerate(frames):
        save(mosaic(planes, Who(seed), key=number), folder / f"m{9 - number}")
    return Hostile(folder, images=(truth(*frames, labels=("1", "2", "3")),))


def bare_mosaic(folder: Path, seed: int) -> Hostile:
    """A mosaic whose private header an anonymiser removed."""
    save(mosaic(stack(head(seed)), Who(seed), csa=False), folder / "m")
    return Hostile(folder, "refused", "mosaic")


# --- beside the images -----------------------------------------------------------------------


def _planes3(seed: int, who: Who, image_type: list[str]) -> list[Dataset]:
    """Three slices in each of three directions."""
    objects = []
    for number in range(3):
        planes = stack(head(seed)[..., 4:7], axes=np.roll(np.eye(3), number, axis=0))
        for d in classic(planes, who, key=number, start=1 + 3 * number):
            d.ImageType = image_type
            objects.append(d)
    return objects


def localiser(folder: Path, seed: int) -> Hostile:
    """A localiser that says so beside a scan."""
    who = Who(seed, series="loc", number=1, description="AAHead_Scout")
    save_all(_planes3(seed, who, ["ORIGINAL", "PRIMARY", "LOCALIZER"]), folder / "1")
    planes = _plain(folder / "2", Who(seed, number=2))
    return Hostile(folder, images=(truth(planes),), aside={"localiser": 9})


def survey(folder: Path, seed: int) -> Hostile:
    """Three directions in one series, called nothing but a survey."""
    who = Who(seed, series="loc", number=1, description="Survey")
    save_all(_planes3(seed, who, ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"]), folder / "1")
    planes = _plain(folder / "2", Who(seed, number=2))
    return Hostile(folder, images=(truth(planes),), aside={"localiser": 9})


def only_a_localiser(folder: Path, seed: int) -> Hostile:
    """Nothing but a localiser."""
    save_all(_planes3(seed, Who(seed), ["ORIGINAL", "PRIMARY", "LOCALIZER"]), folder)
    return Hostile(folder, "set aside", "localiser")


def derived(folder: Path, seed: int) -> Hostile:
    """An ADC map and a reformat beside the scans that they were made of."""
    planes = _plain(folder / "scan", Who(seed, number=5))
    for series, kind in (("adc", ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]),
                         ("mpr", ["DERIVED", "SECONDARY", "MPR"])):  # fmt: skip
        objects = classic(stack(head(seed + 1), axes=TILT), Who(seed, series=series, number=6))
        for d in objects:
            d.ImageType = kind
        save_all(objects, folder / series)
    return Hostile(
        folder, images=(truth(planes),), aside={"derived.*ADC": 12, "derived.*reformat": 12}
    )


def secondary_capture(seed: int) -> Dataset:
    """A screenshot."""
    d = header(Who(seed, series="sc", number=99), "OT", SecondaryCaptureImageStorage, "sc")
    d.ImageType, d.ConversionType = ["DERIVED", "SECONDARY"], "WSD"
    pixels(d, head(seed)[..., 5])
    return d


def structured_report(seed: int) -> Dataset:
    """A report with one line of text (PS3.3 A.35)."""
    d = header(Who(seed, series="sr", number=98), "SR", ComprehensiveSRStorage, "sr")
    d.CompletionFlag, d.VerificationFlag = "COMPLETE", "UNVERIFIED"
    d.ValueType, d.ContinuityOfContent = "CONTAINER", "SEPARATE"
    d.ConceptNameCodeSequence = [code("121060", "DCM", "History")]
    d.ContentSequence = []
    d.ReferencedPerformedProcedureStepSequence = d.PerformedProcedureCodeSequence = []
    return d


def without_pixels(seed: int) -> list[Dataset]:
    """A presentation state, key objects, a structure set and a document."""
    state = header(
        Who(seed, series="pr", number=97), "PR", GrayscaleSoftcopyPresentationStateStorage, "pr"
    )
    state.ContentLabel, state.PresentationCreationDate = "STATE", "20200102"
    keys = header(Who(seed, series="ko", number=96), "KO", KeyObjectSelectionDocumentStorage, "ko")
    contours = header(Who(seed, series="rs", number=95), "RTSTRUCT", RTStructureSetStorage, "rs")
    contours.StructureSetLabel = "contours"
    paper = header(Who(seed, series="pdf", number=94), "DOC", EncapsulatedPDFStorage, "pdf")
    paper.EncapsulatedDocument, paper.MIMETypeOfEncapsulatedDocument = (
        b"%PDF-1.4 ",
        "application/pdf",
    )
    return [state, keys, contours, paper]


def no_images(folder: Path, seed: int) -> Hostile:
    """A scan with everything that a PACS keeps beside it."""
    planes = _plain(folder, Who(seed))
    save(secondary_capture(seed), folder / "sc")
    save(structured_report(seed), folder / "sr")
    for number, d in enumerate(without_pixels(seed)):
        save(d, folder / f"other{number}")
    aside = {
        "secondary capture": 1, "report": 1, "presentation state": 1, "key object": 1,
        "structure set|RTSTRUCT": 1, "document|PDF": 1,
    }  # fmt: skip
    return Hostile(folder, images=(truth(planes),), aside=aside)


def only_a_report(folder: Path, seed: int) -> Hostile:
    """Nothing but a report."""
    save(structured_report(seed), folder / "sr.dcm")
    return Hostile(folder, "set aside", "report|SR")


def only_a_capture(folder: Path, seed: int) -> Hostile:
    """Nothing but a screenshot."""
    save(secondary_capture(seed), folder / "sc.dcm")
    return Hostile(folder, "set aside", "secondary capture")


# --- units -----------------------------------------------------------------------------------


def pet(correction: str, missing: str = "") -> Callable[[Path, int], Hostile]:
    """PET in Bq/ml with what SUVbw needs (or all but one), and a slope of its own per slice.

    The truth is in SUVbw, by the pseudo-code of QIBA.

    With START the dose decays from injection (09:15) to the series (10:15): 3600 s.
    """

    def make(folder: Path, seed: int) -> Hostile:
        planes = stack(head(seed), axes=TILT)
        slopes = [1.0 + 0.5 * n for n in range(12)]
        objects = classic(planes, Who(seed), modality="PT")
        for d, slope in zip(objects, slopes, strict=True):
            d.RescaleSlope, d.DecayCorrection = f"{slope:g}", correction
            if correction == "NONE":
                d.CorrectedImage = ["ATTN", "SCAT"]
            tracer = d.RadiopharmaceuticalInformationSequence[0]
            if missing:
                delattr(d if missing in d else tracer, missing)
        save_all(objects, folder)
        elapsed = 3600.0 if correction == "START" else 0.0
        dose = 4e8 * 2 ** (-elapsed / 6586.2)
        known = correction != "NONE" and not missing
        suv = 80_000.0 / dose if known else 1.0
        image = truth(
            planes,
            slope=[suv * s for s in slopes],
            modality="PT",
            tolerance=1e-4 if known else 1e-2,
        )
        if known:
            return Hostile(folder, images=(image,), units="SUVbw")
        return Hostile(folder, "refused", missing or "DecayCorrection", units="SUVbw")

    return make


def radiograph(folder: Path, seed: int) -> Hostile:
    """MONOCHROME1: low numbers are bright. A picture without a place, 12 bits."""
    d = header(Who(seed), "CR", ComputedRadiographyImageStorage, "cr")
    d.ImageType, d.BodyPartExamined, d.ViewPosition = ["ORIGINAL", "PRIMARY"], "CHEST", "PA"
    pixels(d, head(seed)[..., 5], bits=12)
    d.PhotometricInterpretation = "MONOCHROME1"
    d.ImagerPixelSpacing = ["0.5", "0.5"]
    save(d, folder / "cr.dcm")
    planes = stack(4095 - head(seed)[..., 5:6], spacing=(0.5, 0.5, 1.0))
    image = replace(truth(planes, modality="CR"), affine=None, points=((),))
    return Hostile(folder, images=(image,))


KINDS: dict[str, Callable[[Path, int], Hostile]] = {
    "duplicates, same UID": duplicate_uid,
    "duplicates, other UID": duplicate_content,
    "two patients, one series number": two_patients,
    "two patients, one series UID": colliding_uids,
    "two directions, one series UID": two_series_one_uid,
    "echoes": echoes,
    "b-values": b_values,
    "dynamics": dynamics,
    "acquisitions": acquisitions,
    "enhanced MR": enhanced_of("MR"),
    "enhanced MR, shuffled": enhanced_of("MR", shuffle=True),
    "enhanced CT": enhanced_of("CT"),
    "enhanced PET": enhanced_of("PT"),
    "enhanced b-values": enhanced_4d,
    "enhanced times": enhanced_times,
    "mosaic": siemens_mosaic,
    "mosaic times": mosaic_times,
    "mosaic without its header": bare_mosaic,
    "localiser": localiser,
    "survey": survey,
    "only a localiser": only_a_localiser,
    "derived": derived,
    "no images beside images": no_images,
    "only a report": only_a_report,
    "only a secondary capture": only_a_capture,
    "PET START": pet("START"),
    "PET ADMIN": pet("ADMIN"),
    "PET NONE": pet("NONE"),
    "PET without weight": pet("START", "PatientWeight"),
    "PET without dose": pet("START", "RadionuclideTotalDose"),
    "PET without half-life": pet("START", "RadionuclideHalfLife"),
    "MONOCHROME1": radiograph,
}
