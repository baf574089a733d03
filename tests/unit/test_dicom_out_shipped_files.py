"""Every DICOM image that pydicom and highdicom ship gets valid results, or a reason why not."""

from __future__ import annotations

import logging
from pathlib import Path

import highdicom
import pydicom
import pytest
from dicom_out_cases import errors, write_all

from medgen import io
from medgen.errors import InputError
from medgen.volume import Volume

# What the source itself breaks, and no result can repair without belonging elsewhere:
# it uses one UID for its study and its frame of reference, or holds many frames in an object whose
# class has one.
OF_THE_SOURCE = (
    "StudyInstanceUID has same value as FrameOfReferenceUID",
    "Shall not be present for Referenced SOP Class that is not multi-frame",
)
FOLDERS = (Path(pydicom.__file__).parent / "data", Path(highdicom.__file__).parent)


def images() -> list[tuple[Path, Volume]]:
    found = []
    for folder in FOLDERS:
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".dcm", "")):
            if path.is_file():
                for frame in (None, 0):  # a 4-D image asks for one
                    try:
                        volume = io.read(path, frame=frame, allow_constant=True)
                    except InputError:
                        continue
                    if volume.provenance.format == "dicom":
                        found.append((path, volume))
                    break
    return found


@pytest.mark.slow
def test_valid_or_refused(tmp_path: Path) -> None:
    logging.disable(logging.CRITICAL)  # pydicom warns of the files' own faults
    try:
        wrong, valid, refused = {}, 0, 0
        for number, (path, volume) in enumerate(images()):
            try:
                paths = write_all(volume, tmp_path / str(number))
            except InputError as error:
                refused += 1
                assert "UID" in error.message
                continue
            found = [line for p in paths.values() for line in errors(p)]
            found = [line for line in found if not any(end in line for end in OF_THE_SOURCE)]
            valid += not found
            if found:
                wrong[path.name] = found
    finally:
        logging.disable(logging.NOTSET)
    assert wrong == {}
    assert valid > 50
    assert refused < 10
