"""What is discovered, what is chosen and why, and what is left to do."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.batch.discover import Found, Image, discover, kind_of, secret_of
from medgen.batch.ledger import Entry
from medgen.batch.pipeline import Pipeline
from medgen.batch.plan import choose, reconcile
from medgen.errors import InputError
from medgen.io.walk import Location

SECRET = bytes(32)


def pipeline(case: str = "study") -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "p",
            "case": case,
            "images": {
                "require": [{"field": "modality", "any_of": ["MR"], "reason": "not MR"}],
                "prefer": [{"field": "text", "matches": "flair", "reason": "FLAIR"}],
            },
            "task": {"name": "detect-anomalies", "model": "none"},
        }
    )


def image(label: str, **facts: Any) -> Image:
    group = label.split("/")[0]
    where = (Location(Path("/nowhere") / label),)
    return Image(label, group, "p", label, None, where, {"modality": "MR", "shape": (9,), **facts})


def accept(facts: Any) -> None:
    if facts.get("broken"):
        raise InputError("3 slices are missing", "Export again.")


IMAGES = st.lists(
    st.builds(
        lambda study, n, modality, text, broken: (study, n, modality, text, broken),
        st.sampled_from("abc"), st.integers(0, 99), st.sampled_from(["MR", "CT", None]),
        st.sampled_from(["flair", "t1", ""]), st.booleans(),
    ),
    unique_by=lambda item: item[:2], max_size=12,
)  # fmt: skip


@given(drawn=IMAGES, case=st.sampled_from(["image", "study"]))
def test_every_image_gets_one_verdict_and_order_does_not_matter(drawn, case) -> None:
    images = [
        image(f"{study}/{n:02d}", modality=modality, text=text, broken=broken)
        for study, n, modality, text, broken in drawn
    ]
    cases, verdicts = choose(Found("dicom", images), pipeline(case), accept)
    again = choose(Found("dicom", images[::-1]), pipeline(case), accept)
    assert again == (cases, verdicts)
    assert sorted(v.label for v in verdicts) == sorted(i.label for i in images)
    assert len({c.id for c in cases}) == len(cases)
    chosen = {v.label for v in verdicts if v.verdict == "chosen"}
    assert chosen == {c.id for c in cases if c.state == "waiting"}
    if case == "study":
        groups = {i.group for i in images}
        assert len(cases) == len(groups), "a study without a case or with two"


def test_the_best_image_is_chosen_and_the_others_say_why_not() -> None:
    images = [
        image("s/1", text="t1"), image("s/2", text="flair", coarsest_mm=5),
        image("s/3", text="flair", coarsest_mm=1), image("s/4", modality="CT"),
    ]  # fmt: skip
    cases, verdicts = choose(Found("dicom", images), pipeline(), accept)
    assert [(c.id, c.chosen) for c in cases] == [("s/3", "FLAIR")]
    found = {v.label: (v.verdict, v.reason) for v in verdicts}
    assert found["s/4"] == ("rejected", "not MR")
    assert found["s/1"][0] == found["s/2"][0] == "not needed"


def test_an_unusable_image_gives_way_to_the_next_best_or_fails_with_its_reason() -> None:
    broken = image("s/1", text="flair", broken=True)
    (case,), _ = choose(Found("dicom", [broken, image("s/2", text="t1")]), pipeline(), accept)
    assert case.id == "s/2" and "3 slices are missing" in str(case.chosen)
    (case,), _ = choose(Found("dicom", [broken]), pipeline(), accept)
    assert (case.state, case.reason, case.hint) == (
        "failed", "3 slices are missing", "Export again.",
    )  # fmt: skip
    (case,), _ = choose(Found("dicom", [image("s/1", modality="CT")]), pipeline(), accept)
    assert case.state == "skipped" and "not MR" in str(case.reason)


STATES = ("waiting", "done", "failed", "skipped")


@pytest.mark.parametrize(
    ("state", "same", "intact", "unchanged", "retry", "redo"),
    list(itertools.product(STATES, *[(True, False)] * 5)),
)
def test_only_what_must_be_is_done_again(
    tmp_path: Path, state, same, intact, unchanged, retry, redo
) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"abc")
    one = Image("s/1", "s", "p", "s/1", None, (Location(file),), {"modality": "MR"})
    cases, _ = choose(Found("dicom", [one]), pipeline(), accept)
    stamp = f"1 objects, 3 bytes, {file.stat().st_mtime_ns}" if same else "before"
    todo, entries = reconcile(
        cases, {"s/1": Entry("s/1", state, stamp=stamp, attempts=2)}, retry_failed=retry,
        redo=redo, intact=lambda entry: intact, unchanged=lambda image, entry: unchanged,
    )  # fmt: skip
    expected = (
        redo
        or state in ("waiting", "skipped")
        or (state == "failed" and (retry or not same))
        or (state == "done" and not (intact and (same or unchanged)))
    )
    assert bool(todo) == expected
    # What was touched only is known by its new stamp from now on.
    touched = state == "done" and not expected and not same
    assert [e.state for e in entries] == ["waiting"] * expected + ["done"] * touched
    if touched:
        assert entries[0].stamp != stamp and entries[0].attempts == 2


def test_labels_of_dicom_name_nobody_and_depend_on_the_secret(archives) -> None:
    found = discover(archives["dicom"], "dicom", SECRET)
    assert len(found.images) == 4
    text = " ".join(i.label + i.group + i.patient + i.folder for i in found.images)
    for name in ("DOE", "Jane", "MRN", "00001"):
        assert name not in text
    for one in found.images:
        assert str(one.facts["study_uid"]) not in text
    other = discover(archives["dicom"], "dicom", bytes(31) + b"1")
    assert not {i.label for i in found.images} & {i.label for i in other.images}
    assert discover(archives["dicom"], "dicom", SECRET).images[0].label == found.images[0].label


def test_kinds_of_archives(archives, tmp_path: Path) -> None:
    assert {kind: kind_of(path) for kind, path in archives.items()} == {
        kind: kind for kind in archives
    }
    assert kind_of(next(archives["nifti"].iterdir())) == "nifti"
    (tmp_path / "a.nii.gz").write_bytes(b"")
    (tmp_path / "b.dcm").write_bytes(b"")
    with pytest.raises(InputError, match="side by side"):
        kind_of(tmp_path)
    with pytest.raises(InputError, match="no file or folder"):
        kind_of(tmp_path / "missing")


def test_results_and_originals_inside_a_bids_data_set_are_not_data(archives) -> None:
    root = archives["bids"]
    found = discover(root, "bids", SECRET)
    scan = found.images[0].sources[0].file.read_bytes()
    for folder in ("derivatives/x/sub-01/anat", "sourcedata/sub-01/anat"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "sub-01_T1w.nii.gz").write_bytes(scan)
    again = discover(root, "bids", SECRET)
    assert [i.label for i in again.images] == [i.label for i in found.images]
    assert {i.facts["suffix"] for i in again.images} == {"T1w", "FLAIR"}
    assert {i.facts["modality"] for i in again.images} == {"MR"}


def test_files_with_one_stem_and_damaged_files_are_cases_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"not a scan")
    (tmp_path / "a.nii.gz").write_bytes(b"not a scan")
    found = discover(tmp_path, "nifti", SECRET)
    assert [i.label for i in found.images] == ["a-nii", "a-niigz"]
    assert all(i.facts["blocking"] for i in found.images)


def test_a_secret_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    first = secret_of(tmp_path)
    assert len(first) == 32 and secret_of(tmp_path) == first
    (path,) = [p for p in (tmp_path / ".medgen").iterdir() if p.is_file()]
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"short")
    with pytest.raises(InputError, match="damaged"):
        secret_of(tmp_path)
