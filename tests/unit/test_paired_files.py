"""Which result belongs to which reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from medgen.errors import InputError
from medgen.tasks.paired_files import cases, images, partners


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def test_images_are_named_from_the_folder_on_and_hidden_ones_are_none(tmp_path):
    touch(tmp_path, "a.nii.gz", "sub/b.nii", "sub/c.PNG", ".d.nii", ".trash/e.nii", "notes.txt")
    assert set(images(tmp_path)) == {"a", "sub/b", "sub/c"}
    touch(tmp_path, "a.png")
    with pytest.raises(InputError, match="two images of one name"):
        images(tmp_path)
    with pytest.raises(InputError, match="no file or folder"):
        images(tmp_path / "nowhere")


def test_a_folder_of_dicom_files_is_one_image_without_its_name(tmp_path):
    touch(tmp_path / "DOE_JANE", "1", "2.dcm")
    assert images(tmp_path / "DOE_JANE") == {"scan": tmp_path / "DOE_JANE"}


@pytest.mark.parametrize(
    "made",
    [
        ("s-1.nii.gz", "s-2.nii.gz"),
        ("s-1_desc-denoised.nii.gz", "s-2_desc-denoised.nii.gz"),
        ("s-1/s-1_desc-denoised.nii.gz", "s-2/s-2_desc-denoised.nii.gz"),
        ("s-1/denoised.nii.gz", "s-2/denoised.nii.gz"),
    ],
)
def test_results_are_found_by_the_start_of_their_names(tmp_path, made):
    truth = images(touch(tmp_path / "truth", "s-1.nii.gz", "s-2.nii.gz", "s-3.nii.gz"))
    found = partners(truth, touch(tmp_path / "made", *made), "result", None)
    assert found == {"s-1": tmp_path / "made" / made[0], "s-2": tmp_path / "made" / made[1]}


def test_a_longer_name_is_not_taken_for_the_shorter_one(tmp_path):
    truth = images(touch(tmp_path / "truth", "s.nii", "s_run-2.nii"))
    made = touch(tmp_path / "made", "s_out.nii", "s_run-2_out.nii", "s2_out.nii")
    found = partners(truth, made, "result", None)
    assert {name: path.name for name, path in found.items()} == {
        "s": "s_out.nii",
        "s_run-2": "s_run-2_out.nii",
    }


def test_several_fitting_files_are_refused_until_one_is_named(tmp_path):
    truth = images(touch(tmp_path / "truth", "s-1.nii.gz", "s-2.nii.gz"))
    made = touch(tmp_path / "made", "s-1_t2.nii.gz", "s-1_flair.nii.gz", "s-2_t2.nii.gz")
    with pytest.raises(InputError, match=r"s-1_flair\.nii\.gz, s-1_t2\.nii\.gz"):
        partners(truth, made, "result", None)
    found = partners(truth, made, "result", "*_t2.nii.gz")
    assert {path.name for path in found.values()} == {"s-1_t2.nii.gz", "s-2_t2.nii.gz"}


def test_what_medgen_writes_beside_an_image_is_passed_over(tmp_path):
    """The folder of `medgen inpaint` serves as result, and as mask."""
    truth = images(touch(tmp_path / "truth", "s-1.nii.gz", "s-2.nii.gz"))
    files = ("desc-inpainted.nii.gz", "desc-inpainted_uncertainty.nii.gz",
             "desc-inpainted_invented.nii.gz")  # fmt: skip
    made = tmp_path / "made"
    for n in (1, 2):
        touch(made / f"s-{n}", "overview.png", "report.html", *(f"s-{n}_{file}" for file in files))
    names = {path.name for path in partners(truth, made, "result", None).values()}
    assert names == {"s-1_desc-inpainted.nii.gz", "s-2_desc-inpainted.nii.gz"}
    names = {path.name for path in partners(truth, made, "mask", None).values()}
    assert names == {"s-1_desc-inpainted_invented.nii.gz", "s-2_desc-inpainted_invented.nii.gz"}


def test_names_of_bids_derivatives(tmp_path):
    truth = images(touch(tmp_path / "truth", "sub-1_T1w.nii.gz", "sub-1_T2w.nii.gz"))
    made = touch(
        tmp_path / "made", "sub-1_desc-denoised_T1w.nii.gz", "sub-1_desc-synthetic_T2w.nii.gz",
        "sub-1_desc-denoisedT1w_uncertainty.nii.gz",
    )  # fmt: skip
    found = partners(truth, made, "result", None)
    assert {name: path.name for name, path in found.items()} == {
        "sub-1_T1w": "sub-1_desc-denoised_T1w.nii.gz",
        "sub-1_T2w": "sub-1_desc-synthetic_T2w.nii.gz",
    }


def test_masks_one_for_all_or_one_for_each(tmp_path):
    truth = touch(tmp_path / "truth", "s-1.nii.gz", "s-2.nii.gz")
    one = touch(tmp_path, "mask.nii.gz") / "mask.nii.gz"
    assert {case.mask for case in cases(truth, one, None)} == {one}
    with pytest.raises(InputError, match="no mask for s-2"):
        cases(truth, touch(tmp_path / "masks", "s-1_mask.nii.gz", "other.nii.gz"), None)


def test_patients_by_pattern(tmp_path):
    truth = touch(tmp_path / "truth", "p7_1.png", "p7_2.png", "p8_1.png")
    assert [case.group for case in cases(truth, None, "^(p[0-9]+)")] == ["p7", "p7", "p8"]
    assert [case.group for case in cases(truth, None, None)] == ["p7_1", "p7_2", "p8_1"]
    for pattern, message in (("p[0-9]+", "one"), ("(q)", "finds no patient")):
        with pytest.raises(InputError, match=message):
            cases(truth, None, pattern)
