"""One try of one case: what is recorded when it goes well, and when it does not."""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile_cohorts import cohort, nifti_cohort

from medgen import io
from medgen.batch import verbs
from medgen.batch.discover import discover
from medgen.batch.pipeline import Detect
from medgen.batch.verbs import hash_sources
from medgen.batch.work import Job, work
from medgen.errors import InputError
from medgen.io.walk import Location

SECRET_FOLDER = "DOE^JANE 1970-01-01"


def job(sources, tmp_path: Path, shelf: Path, **changes) -> Job:
    values = {
        "id": "case", "sources": tuple(sources), "root": str(tmp_path), "private": False,
        "task": Detect(name="detect-anomalies", model="tiny-baseline", report=False),
        "drafts": str(tmp_path / "drafts"),
        "models": {"tiny-baseline": str(shelf / "tiny-baseline")},
    }  # fmt: skip
    return Job(**{**values, **changes})


@pytest.fixture
def scan(tmp_path: Path) -> Location:
    return Location(nifti_cohort(tmp_path / "in", 1)[0].path)


def test_a_later_try_uses_less_memory_says_so_and_finds_the_same(scan, tmp_path, shelf) -> None:
    first = work(job([scan], tmp_path, shelf))
    third = work(job([scan], tmp_path, shelf, attempt=3))
    assert (first.state, third.state) == ("done", "done")
    assert first.result["values"] == third.result["values"]
    assert not first.result["flags"] and "try 3" in third.result["flags"][0]
    maps = [next(Path(o.draft).glob("*_map.nii.gz")).read_bytes() for o in (first, third)]
    assert maps[0] == maps[1]
    assert first.input_sha256 == third.input_sha256 == hash_sources([scan])


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (MemoryError(), "memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (InputError("it is too small", "Scan again."), "failed"),
        (ZeroDivisionError("division by zero"), "failed"),
    ],
)
def test_what_goes_wrong_is_told_apart(monkeypatch, scan, tmp_path, shelf, error, state) -> None:
    def raises(*_: object) -> None:
        raise error

    monkeypatch.setattr(verbs, "_detect", raises)
    outcome = work(job([scan], tmp_path, shelf))
    assert outcome.state == state
    assert not list((tmp_path / "drafts").iterdir()), "a draft was left behind"
    if isinstance(error, InputError):
        assert (outcome.reason, outcome.hint) == ("it is too small", "Scan again.")
    if isinstance(error, ZeroDivisionError):
        assert "ZeroDivisionError" in str(outcome.reason) and "raises" in str(outcome.detail)


def test_a_full_disk_behind_a_clear_error_is_still_a_full_disk(
    monkeypatch, scan, tmp_path, shelf
) -> None:
    def raises(*_: object) -> None:
        raise InputError("cannot write") from OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(verbs, "_detect", raises)
    assert work(job([scan], tmp_path, shelf)).state == "disk"


@pytest.mark.parametrize("damage", ["truncated", "gone", "unexpected"])
def test_messages_about_dicom_name_no_path(tmp_path, shelf, monkeypatch, damage) -> None:
    archive = tmp_path / SECRET_FOLDER
    cohort(archive, 1)
    (image,) = discover(archive, "dicom", bytes(32)).images
    victim = image.sources[3].file
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:-200])
    elif damage == "gone":
        victim.unlink()
    else:

        def raises(*_: object) -> None:
            raise RuntimeError(f"cannot handle {victim} in {archive}")

        monkeypatch.setattr(verbs, "_detect", raises)
    outcome = work(job(image.sources, tmp_path, shelf, private=True, root=str(archive)))
    assert outcome.state == "failed"
    text = f"{outcome.reason} {outcome.hint} {outcome.detail}"
    assert "DOE" not in text and "1970" not in text and str(tmp_path) not in text, text


def test_a_hash_is_of_the_contents_alone(tmp_path: Path) -> None:
    cohort(tmp_path / "archive", 1)
    (image,) = discover(tmp_path / "archive", "dicom", bytes(32)).images
    expected = hash_sources(image.sources)
    assert hash_sources(image.sources[::-1]) == expected
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, location in enumerate(image.sources):
            archive.write(location.file, f"other/names/{number}")
    (zipped,) = discover(packed, "dicom", bytes(32)).images
    assert hash_sources(zipped.sources) == expected
    assert np.array_equal(io.read(zipped.sources).voxels, io.read(image.sources).voxels)
    changed = image.sources[0].file
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    assert hash_sources(image.sources) != expected
