"""Sets of cases: subjects stay apart, masks fit their images, what cannot be used is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from medgen.errors import GeometryError, InputError, LeakageError
from medgen.grouped_files import SetConfig, facts, split_images
from medgen.io import write_nifti
from medgen.phantoms import brain
from medgen.tasks.anomaly_cases import (
    CaseSet,
    cases_of,
    refuse_known,
    refuse_other_sizes,
    refuse_shared,
)
from medgen.tasks.anomaly_models import hashes_in
from medgen.tasks.anomaly_study import (
    UNTRAINED,
    Study,
    read_study,
    study_cases,
    training_of,
    units,
)


def save_scans(folder: Path, count: int = 4) -> Path:
    """Small slices of FLAIR with lesion masks, two scans of each subject."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        head = brain((24, 28), spacing_mm=6.0, seed=n, contrast="flair", lesion_radius_mm=14.0)
        name = f"sub-{n // 2}_run-{n % 2}"
        write_nifti(folder / f"{name}_FLAIR.nii.gz", head.image.voxels[0], head.image.geometry)
        label = (3 * head.lesion).astype(np.uint8)
        write_nifti(folder / f"{name}_lesions.nii.gz", label, head.image.geometry, kind="label")
    return folder


def save_pictures(folder: Path, per_condition: int = 12) -> Path:
    random = np.random.default_rng(0)
    for condition in ("healthy", "ill"):
        (folder / condition).mkdir(parents=True)
        for n in range(per_condition):
            pixels = random.integers(0, 255, (16, 16), dtype=np.uint8)
            name = f"{condition[0]}{n // 2}_{n % 2}.png"
            Image.fromarray(pixels).save(folder / condition / name)
    return folder


SCANS = {
    "images": "*_FLAIR.nii.gz", "masks": {"_FLAIR": "_lesions"}, "group_pattern": "(sub-[0-9]+)",
}  # fmt: skip


def study(root: Path, **values) -> Study:
    return Study.model_validate({"name": "s", "root": root, "protocols": ["kascenas2022"],
                                 "test": SCANS, **values})  # fmt: skip


def test_images_find_their_masks_and_subjects(tmp_path):
    root = save_scans(tmp_path / "scans")
    cases = cases_of(CaseSet.model_validate(SCANS), root)
    assert [case.group for case in cases] == ["sub-0", "sub-0", "sub-1", "sub-1"]
    assert all(case.abnormal is None and case.masked for case in cases)
    loaded = cases[0].load()
    expected = brain((24, 28), spacing_mm=6.0, seed=0, contrast="flair", lesion_radius_mm=14.0)
    np.testing.assert_array_equal(loaded.truth, expected.lesion)
    none = cases_of(CaseSet.model_validate({**SCANS, "first_label": 4}), root)[0].load()
    assert not none.truth.any()
    # The same by a folder of masks that are named like the images.
    masks = tmp_path / "masks"
    masks.mkdir()
    for case in cases:
        name = case.image.name
        lesion = case.image.with_name(name.replace("_FLAIR", "_lesions"))
        (masks / name).write_bytes(lesion.read_bytes())
    by_folder = {"images": "scans/*_FLAIR.nii.gz", "masks": "masks"}
    by_pattern = {"images": "scans/*_FLAIR.nii.gz", "masks": "masks/*.nii.gz"}
    for given in (by_folder, by_pattern):
        found = cases_of(CaseSet.model_validate(given), tmp_path)
        assert [case.mask.parent for case in found] == [masks] * 4
        assert [case.mask.name for case in found] == [case.image.name for case in found]


def test_masks_of_one_name_are_told_apart_by_their_folders(tmp_path):
    flat = save_scans(tmp_path / "flat", count=3)
    for n, path in enumerate(sorted(flat.glob("*_FLAIR.nii.gz"))):
        for kind, ending in (("scans", "FLAIR"), ("masks", "lesions")):
            folder = tmp_path / kind / f"person.{n}"
            folder.mkdir(parents=True)
            source = path.with_name(path.name.replace("FLAIR", ending))
            (folder / "flair.1.nii.gz").write_bytes(source.read_bytes())
    given = {"images": "scans/*/flair.1.nii.gz", "masks": "masks/*/flair.1.nii.gz"}
    found = cases_of(CaseSet.model_validate(given), tmp_path)
    assert [c.mask.parent.name for c in found] == [c.image.parent.name for c in found]
    assert len({case.group for case in found}) == 3
    (tmp_path / "masks" / "again" / "person.0").mkdir(parents=True)
    twin = tmp_path / "masks" / "again" / "person.0" / "flair.1.nii.gz"
    twin.write_bytes(found[0].mask.read_bytes())
    again = given | {"masks": "masks/**/flair.1.nii.gz"}
    with pytest.raises(InputError, match="have no mask"):  # of two, neither is taken
        cases_of(CaseSet.model_validate(again), tmp_path)
    (tmp_path / "masks" / "person.0" / "flair.1.nii").touch()
    either = given | {"masks": "masks/*/flair.1.nii*"}
    with pytest.raises(InputError, match="in nothing but the ending"):
        cases_of(CaseSet.model_validate(either), tmp_path)


def test_one_image_under_two_names_is_refused(tmp_path):
    root = save_scans(tmp_path, count=2)
    for part in ("FLAIR", "lesions"):
        source = root / f"sub-0_run-0_{part}.nii.gz"
        (root / f"sub-9_run-0_{part}.nii.gz").write_bytes(source.read_bytes())
    with pytest.raises(LeakageError, match="are the same image of two subjects"):
        refuse_shared({"test": cases_of(CaseSet.model_validate(SCANS), root)})


def test_a_mask_on_another_grid_is_refused(tmp_path):
    root = save_scans(tmp_path)
    other = brain((22, 28), spacing_mm=6.0, lesion_radius_mm=14.0)
    path = root / "sub-0_run-0_lesions.nii.gz"
    path.unlink()
    write_nifti(path, other.lesion.astype(np.uint8), other.image.geometry, kind="label")
    cases = cases_of(CaseSet.model_validate(SCANS), root)
    with pytest.raises(GeometryError, match=r"lies on another grid than its image .*22, 28\)"):
        cases[0].load()
    # Seen from headers alone, before any case is read.
    with pytest.raises(GeometryError, match=r"lies on another grid than its image .*22, 28\)"):
        refuse_other_sizes(cases)
    refuse_other_sizes(cases[1:])
    # A map of probabilities is no mask.
    half = cases[2].mask
    head = nibabel.load(half)
    soft = np.asarray(head.dataobj).astype(np.float32) / 6
    half.unlink()
    nibabel.save(nibabel.Nifti1Image(soft, head.affine), half)
    with pytest.raises(InputError, match=r"holds fractions, up to 0\.5"):
        cases[2].load()
    # Of the same size, but elsewhere.
    shifted = cases[1].mask
    head = nibabel.load(shifted)
    affine = head.affine.copy()
    affine[0, 3] += 3
    label = np.asarray(head.dataobj)
    shifted.unlink()
    nibabel.save(nibabel.Nifti1Image(label, affine), shifted)
    with pytest.raises(GeometryError, match="not in the same places"):
        cases[1].load()


def test_missing_masks_and_empty_patterns_are_refused(tmp_path):
    root = save_scans(tmp_path)
    (root / "sub-1_run-1_lesions.nii.gz").unlink()
    with pytest.raises(InputError, match="1 of 4 images have no mask, such as sub-1_run-1"):
        cases_of(CaseSet.model_validate(SCANS), root)
    with pytest.raises(InputError, match="there are no images at"):
        cases_of(CaseSet(images="nothing/*.png"), root)
    with pytest.raises(InputError, match="have no mask"):  # an image is not its own mask
        cases_of(CaseSet(images="*_FLAIR.nii.gz", masks={"x": "y"}), root)
    nobody = {"images": "*_FLAIR.nii.gz", "group_pattern": "(patient)"}
    with pytest.raises(InputError, match="finds no subject"):
        cases_of(CaseSet.model_validate(nobody), root)
    for wrong in ({}, {"images": "a", "folder": "b"}, {"images": "a", "part": [0.5, 0.5]}):
        with pytest.raises(ValueError, match=r"give one of|two rising numbers"):
            CaseSet.model_validate(wrong)


def test_a_folder_is_split_as_training_splits_it(tmp_path):
    root = save_pictures(tmp_path / "set")
    given = {"folder": "set", "abnormal": ["ill"], "group_pattern": "^([^_]+)_",
             "validation_fraction": 0.4}  # fmt: skip
    sides = {
        side: cases_of(CaseSet.model_validate({**given, "side": side}), tmp_path)
        for side in ("train", "held_out", "all")
    }
    config = SetConfig(folder=root, group_pattern="^([^_]+)_", validation_fraction=0.4)
    train, held_out = split_images(config)
    assert {case.image for case in sides["train"]} == {item.path for item in train}
    assert {case.image for case in sides["held_out"]} == {item.path for item in held_out}
    assert len(sides["all"]) == 24
    assert all(case.abnormal == case.name.startswith("ill/") for case in sides["all"])
    known = hashes_in(facts(train, held_out, ("healthy", "ill")))
    refuse_known("m", set(known), sides["held_out"], "test")
    # Known by its subject's name, and by its contents whatever it and its subject are called.
    for case in (sides["train"][0], replace(sides["train"][0], group="another")):
        with pytest.raises(LeakageError, match="trained or calibrated on 1 of the 1 cases of test"):
            refuse_known("m", set(hashes_in(facts(train, held_out, ()))), [case], "test")
    with pytest.raises(InputError, match="sick, which is no condition"):
        cases_of(CaseSet.model_validate({**given, "abnormal": ["sick"]}), tmp_path)


def test_parts_share_no_subject_and_leave_none_out(tmp_path):
    save_pictures(tmp_path / "set")
    given = {"folder": "set", "abnormal": ["ill"], "group_pattern": "^([^_]+)_", "side": "all"}
    parts = [
        cases_of(CaseSet.model_validate({**given, "part": part}), tmp_path)
        for part in ([0, 0.5], [0.5, 1])
    ]
    assert not {case.group for case in parts[0]} & {case.group for case in parts[1]}
    assert sum(map(len, parts)) == 24
    refuse_shared({"test": parts[0], "validation": parts[1]})
    with pytest.raises(LeakageError, match="is in both test and validation"):
        refuse_shared({"test": parts[0], "validation": parts[0][:1]})


def test_the_test_set_cannot_give_the_threshold(tmp_path):
    root = save_scans(tmp_path / "a")
    with pytest.raises(LeakageError, match="is in both test and validation"):
        study_cases(study(root, validation=SCANS))
    # Not even under another name.
    (tmp_path / "b").mkdir()
    for path in root.iterdir():
        (tmp_path / "b" / path.name.replace("sub-", "patient-")).write_bytes(path.read_bytes())
    twin = {**SCANS, "images": "b/*_FLAIR.nii.gz", "group_pattern": "(patient-[0-9]+)"}
    first = {**SCANS, "images": "a/*_FLAIR.nii.gz"}
    with pytest.raises(LeakageError, match="is the same image as"):
        study_cases(study(tmp_path, test=first, validation=twin))


def test_protocols_that_do_not_fit_the_data_are_refused(tmp_path):
    save_pictures(tmp_path / "set")
    scans = save_scans(tmp_path / "scans")
    whole = {"folder": "set", "abnormal": ["ill"], "side": "all"}
    for values, words in (
        ({"test": whole}, "measures voxels, but 12 of 24 test cases have no lesion mask"),
        ({"test": {**whole, "abnormal": []}}, "all 24 test cases are normal: no metric"),
        ({"test": {**whole, "abnormal": []}, "protocols": ["image_level"]},
         "all 24 test cases are normal: no image-level metric"),
        ({"protocols": ["behrendt2023"], "root": scans}, "fixes its threshold on a validation"),
        ({"root": scans, "normals": {"folder": "../set", "abnormal": ["ill"]}},
         "`normals` must hold normal cases only"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            study_cases(study(**{"root": tmp_path, **values}))


def test_a_study_is_read_with_changes_and_its_problems_are_named(tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text("name: s\nprotocols: [kascenas2022]\ntest: {phantoms: {count: 2}}\n")
    read = read_study(file, ["test.phantoms.count=3", "seed=7"], tmp_path)
    assert read.test.phantoms.count == 3 and read.seed == 7 and read.root == tmp_path
    for change, words in (
        ("protocols=[kascenas]", "Did you mean 'kascenas2022'"),
        ("tset=1", "Did you mean 'test'"),
        ("methods={dea: {}}", "unknown method 'dea'. Did you mean"),
        ("models=[{name: a}]", "one of `package`, `runs` and `study`"),
        ("test.images=a", "give one of phantoms, images and folder"),
    ):
        with pytest.raises(InputError, match=words):
            read_study(file, [change])
    with pytest.raises(InputError, match="cannot read the study"):
        read_study(tmp_path / "none.yaml")


def test_units_are_baselines_models_and_seeds(tmp_path):
    one = study(
        tmp_path, models=["brain-mr", {"name": "AE", "runs": ["a", "b"]}],
        methods={"dae": {}, "small dae": {"method": "dae"}}, seed=5,
    )  # fmt: skip
    found = [(unit.name, unit.seed, unit.kind) for unit in units(one, ["small dae"], 2)]
    assert found == [
        ("intensity", 0, "baseline"), ("intensity, inverted", 0, "baseline"),
        (UNTRAINED, 0, "baseline"), ("brain-mr", 0, "package"), ("AE", 0, "run"),
        ("AE", 1, "run"), ("small dae", 5, "method"), ("small dae", 6, "method"),
    ]  # fmt: skip
    assert len(units(study(tmp_path))) == 2, "nothing has weights, so nothing is untrained"
    with pytest.raises(InputError, match="the study has no method 'gan'"):
        units(one, ["gan"])
    with pytest.raises(InputError, match="two models would be called brain-mr-seed0"):
        units(study(tmp_path, models=["brain-mr", {"name": "brain-mr", "package": "intensity"}]))
    with pytest.raises(InputError, match="called intensity-seed0") as told:
        units(study(tmp_path, models=["intensity"]))
    assert "a baseline, which stands in every study" in str(told.value.hint)
    with pytest.raises(InputError, match="unknown model 'brain-m'"):
        units(study(tmp_path, models=["brain-m"]))
    plain = study(tmp_path, models=[{"name": "shipped", "package": "intensity"}])
    assert [unit.name for unit in units(plain)][-1] == "shipped"
    assert UNTRAINED not in [unit.name for unit in units(plain)]


SUITES = sorted(
    (Path(__file__).resolve().parents[2] / "configs" / "studies").glob("anomaly-*.yaml")
)


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_every_suite_can_be_read_and_its_methods_configured(suite):
    from medgen.methods import method_class, registered
    from medgen.training.batches import SOURCES
    from medgen.training.config import validated

    one = read_study(suite)
    for unit in units(one, seeds=1):
        if unit.kind == "method":
            config = training_of(one, unit, steps=5, minutes=None)
            cls = method_class(config.method)
            settings = registered(config.method, config.config)[1]
            assert validated(cls.Config, settings, unit.name).spatial_dims == 2
            assert config.data["kind"] in SOURCES and config.steps == 5
    assert one.methods or one.models
