"""Names: of patients they are told nowhere; of files they become labels that hold everywhere."""

from __future__ import annotations

import gzip
import os
import sys
import zipfile
from pathlib import Path

import pytest
from hostile_cohorts import bids_dataset, cohort, nifti_cohort
from hypothesis import given
from hypothesis import strategies as st
from test_work import job

from medgen.batch import verbs
from medgen.batch.discover import _portable, discover
from medgen.batch.pipeline import load_pipeline
from medgen.batch.plan import check_for
from medgen.batch.prepare import Options, refuse_unfit
from medgen.batch.private import without_paths
from medgen.batch.shards import Shard
from medgen.batch.summary import Row, cell
from medgen.batch.work import work
from medgen.errors import InputError
from medgen.io.walk import Location

SECRET = bytes(32)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder with a zip, both named after the patient, in which a slice is missing."""
    cohort(tmp_path / "plain", 1)
    archive = tmp_path / "DOE JANE 1970"
    archive.mkdir()
    files = [path for path in sorted((tmp_path / "plain").rglob("*")) if path.is_file()]
    with zipfile.ZipFile(archive / "doe_jane.zip", "w") as packed:
        for file in files[:8] + files[9:]:
            packed.write(file, f"Doe^Jane/{file.name}")
    return archive


def test_why_an_image_cannot_be_used_names_no_path(packed: Path) -> None:
    (image,) = discover(packed, "dicom", SECRET).images
    told = str(image.facts["blocking"])
    assert "slice is missing" in told
    assert "doe" not in told.lower() and str(packed.parent) not in told


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Bad CRC-32 for file 'Doe^Jane/IM0003'"),
        ValueError("could not convert 'DOE^JANE' to a number"),
        FileNotFoundError(2, "No such file", "/elsewhere/DOE^JANE"),
        InputError("doe_jane.zip holds no 'Doe^Jane/IM0003'", "Look at IM0003."),
    ],
)
def test_errors_of_a_private_case_quote_no_names(
    packed, tmp_path, shelf, monkeypatch, error
) -> None:
    def raises(*_: object) -> None:
        raise error

    (image,) = discover(packed, "dicom", SECRET).images
    monkeypatch.setattr(verbs, "detect", raises)
    outcome = work(job(image.sources, tmp_path, shelf, private=True, root=str(packed)))
    told = f"{outcome.reason} {outcome.hint} {outcome.detail}"
    assert outcome.state == "failed" and "doe" not in told.lower(), told
    assert type(error).__name__ in told or isinstance(error, InputError)


def test_paths_are_found_as_python_quotes_them() -> None:
    file = Path("/in/O'Neil\n1970/a\\b.dcm")
    for text in (str(file), repr(str(file)), f"{OSError(2, 'gone', str(file))}", file.name):
        found = without_paths(f"cannot read {text}: 3 slices", [Location(file)], "/in")
        assert "Neil" not in found and "b.dcm" not in found and "3 slices" in found
    short = [Location(Path("w/series 1/IM1")), Location(Path("/w/a/IM1"))]
    assert without_paths("two slices show 5 % / w", short, "w") == "two slices show 5 % / w"
    assert without_paths("5 slices", [Location(Path("/in/5"))], "/in") == "5 slices"


def test_messages_about_nifti_name_files_as_seen_from_the_archive(tmp_path, shelf) -> None:
    file = nifti_cohort(tmp_path / "in", 1)[0].path
    file.write_bytes(file.read_bytes()[:2000])
    outcome = work(job([Location(file)], tmp_path, shelf, root=str(tmp_path / "in")))
    assert outcome.state == "failed" and file.name in str(outcome.reason)
    assert str(tmp_path) not in f"{outcome.reason} {outcome.hint}"
    (image,) = discover(tmp_path / "in", "nifti", SECRET).images
    assert str(tmp_path) not in str(image.facts.get("blocking"))


@given(name=st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=9))
def test_a_label_can_be_a_folder_a_line_and_a_link(name: str) -> None:
    label = _portable(name)
    assert label.encode() and len(cell(label).splitlines()) == 1
    assert Shard(1, 2).holds(label) in (True, False)
    assert _portable("Müller 2 (α)") == "Müller 2 (α)", "ordinary names stay as they are"
    if name not in (".", ".."):
        Row(label, "done", folder=label)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not allow such names")
def test_no_name_of_a_file_stops_a_cohort(tmp_path: Path) -> None:
    for name in (b"a\\b", b"c:d", b"M\xfcller", b"e\nf", b"G", b"g"):
        (tmp_path / os.fsdecode(name + b".nii")).write_bytes(b"no scan")
    (tmp_path / "G.nii.gz").write_bytes(b"no scan")
    (tmp_path / "G-nii.nii").write_bytes(b"no scan")
    images = discover(tmp_path, "nifti", SECRET).images
    labels = [image.label.casefold() for image in images]
    assert len(labels) == len(set(labels)) == 8
    for image in images:
        Row(image.label.encode().decode(), "failed", folder=image.folder)


def test_of_two_files_of_one_bids_name_the_second_fails_and_harms_nothing(tmp_path: Path) -> None:
    path = bids_dataset(tmp_path / "bids", 1, 1)[0].path
    path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
    images = discover(tmp_path / "bids", "bids", SECRET).images
    assert len({image.label for image in images}) == 3
    stopped = [image for image in images if image.facts.get("blocking")]
    assert len(stopped) == 1 and "same name" in str(stopped[0].facts["blocking"])


def test_colour_is_not_converted_to_its_red_part(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    rule = "{when: [{field: dims, any_of: [3], reason: x}], suffix: T1w}"
    path.write_text(f"name: p\ntask: {{name: dicom-to-bids, naming: [{rule}]}}\n")
    check = check_for(load_pipeline(path), 4.0)
    check({"dims": 3, "channels": 1})
    with pytest.raises(InputError, match="colour"):
        check({"dims": 3, "channels": 3})


def test_a_pipeline_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text("name: " + "[" * 20_000)
    with pytest.raises(InputError, match="not valid YAML"):
        load_pipeline(path)


def test_results_may_lie_in_a_bids_data_set_but_not_among_its_data(tmp_path: Path) -> None:
    bids_dataset(tmp_path / "bids", 1, 1)
    path = tmp_path / "p.yaml"
    path.write_text("name: p\ntask: {name: detect-anomalies}\n")
    for place, allowed in (("derivatives/medgen", True), ("sub-01/medgen", False), (".", False)):
        options = Options(path, tmp_path / "bids", tmp_path / "bids" / place)
        if allowed:
            refuse_unfit(options, load_pipeline(path), "bids")
        else:
            with pytest.raises(InputError, match="must not contain each other"):
                refuse_unfit(options, load_pipeline(path), "bids")
