"""Folders to image sets: conditions, patients, sizes, orientation, and what is refused."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
from evaluation_cases import annotated_folder, made_folder, picture, real_folder
from PIL import Image

from medgen.errors import InputError, LeakageError
from medgen.tasks.evaluation_sets import Where, read_sets


def edited(fake, **changes):
    """Change the first line of a manifest, as somebody with an editor might."""
    path = fake / "manifest.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | changes), *rest]))


def test_a_synthesis_and_real_subfolders(tmp_path):
    real = real_folder(tmp_path / "real", 8)
    fake = made_folder(tmp_path / "fake", 6)
    loaded = read_sets(real, fake, None, Where(group_pattern="^([^_]+)_"))
    assert loaded.condition_names == ("lying", "standing")
    assert loaded.real.condition.tolist() == [0] * 4 + [1] * 4
    assert loaded.fake.condition.tolist() == [0, 1] * 3
    assert loaded.real.groups == ["l000"] * 2 + ["l001"] * 2 + ["s000"] * 2 + ["s001"] * 2
    assert loaded.train is None
    assert loaded.model["model_sha256"] == "c" * 64
    # Columns first, then rows downwards; 0..255 is -1..1.
    expected = picture(1, 5001).T / 127.5 - 1
    assert loaded.fake.images[1, 0] == pytest.approx(expected, abs=1e-6)


def test_the_split_of_training_is_found_again(tmp_path):
    from medgen.grouped_files import SetConfig, split_images

    real = real_folder(tmp_path / "real", 40)
    pattern = "^([^_]+)_"
    loaded = read_sets(
        real, made_folder(tmp_path / "fake"), None, Where(group_pattern=pattern, held_out=0.3)
    )
    train, held_out = split_images(
        SetConfig(folder=real, group_pattern=pattern, validation_fraction=0.3)
    )
    assert sorted(set(loaded.real.groups)) == sorted({item.group for item in held_out})
    assert len(loaded.train) == len(train)
    with pytest.raises(InputError, match="exclude each other"):
        read_sets(real, tmp_path / "fake", real, Where(held_out=0.3))


def test_conditions_of_other_names_must_be_matched(tmp_path):
    real = real_folder(tmp_path / "real", 8)
    fake = made_folder(tmp_path / "fake", 6, names=("flat", "upright"))
    with pytest.raises(InputError, match="flat, upright, REAL has lying, standing"):
        read_sets(real, fake, None, Where())
    matched = Where(conditions={"upright": "standing", "flat": "lying"})
    loaded = read_sets(real, fake, None, matched)
    assert loaded.condition_names == ("upright", "flat")
    assert loaded.fake.condition.tolist() == [1, 0] * 3


def test_real_images_come_to_the_size_and_colour_of_the_synthetic_ones(tmp_path):
    real = real_folder(tmp_path / "real", 4)
    fake = tmp_path / "fake"
    fake.mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(fake / "a.png")
    loaded = read_sets(real, fake, None, Where())
    assert loaded.real.images.shape == (4, 3, 16, 16)
    assert loaded.fake.condition is None, "no subfolders, no conditions"
    assert "resampled from 32 x 32 grey to 16 x 16 colour" in loaded.notes[0]
    cropped = read_sets(real, fake, None, Where(fit="crop"))
    expected = picture(0, 0).T[8:24, 8:24] / 127.5 - 1
    assert cropped.real.images[0, 1] == pytest.approx(expected, abs=1e-6)


def test_annotated_volumes_against_slices_and_their_labels(tmp_path):
    real = annotated_folder(tmp_path / "real", 4)
    fake = annotated_folder(tmp_path / "fake", 2, first=20)
    whole = read_sets(real, fake, None, Where())
    assert whole.real.images.shape == (4, 1, 32, 32, 6)
    assert whole.real.labels.shape == (4, 1, 32, 32, 6) and whole.real.labels.max() == 1
    sliced = read_sets(real, fake, None, Where(slices=True))
    assert sliced.real.images.shape == (24, 1, 32, 32)
    assert sliced.real.groups == [f"p{n:02d}" for n in range(4) for _ in range(6)]
    # Bright where labelled, in every slice: image and labels were cut alike.
    assert ((sliced.real.images > 0) == (sliced.real.labels == 1)).all()
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.fromarray(picture(0, 1)).save(flat / "a.png")
    assert read_sets(real, flat, None, Where()).real.images.shape == (24, 1, 32, 32)


def test_pictures_and_volumes_have_one_orientation(tmp_path):
    """The front of a volume is the top of a picture."""
    pixels = picture(0, 3).astype(np.float32)
    volume = np.flip(pixels, 0).T[..., None].repeat(3, axis=2)
    (tmp_path / "real").mkdir()
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "real" / "p1.nii.gz")
    (tmp_path / "fake").mkdir()
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "fake" / "a.png")
    loaded = read_sets(tmp_path / "real", tmp_path / "fake", None, Where())
    one, other = loaded.real.images[0, 0], loaded.fake.images[0, 0]
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


def test_the_same_file_on_both_sides_is_leakage(tmp_path):
    """A copy under another patient's name is found as soon as the split parts the two."""
    real, fake = real_folder(tmp_path / "real", 20), made_folder(tmp_path / "fake", 4)
    where = Where(group_pattern="^([^_]+)_", held_out=0.4)

    def refused(patient: str) -> bool:
        twin = real / "lying" / f"{patient}_0.png"
        twin.write_bytes((real / "lying" / "l000_0.png").read_bytes())
        try:
            loaded = read_sets(real, fake, None, where)
        except LeakageError as error:
            assert "same image" in error.message
            return True
        finally:
            twin.unlink()
        sides = [patient in images.groups for images in (loaded.real, loaded.train)]
        original = ["l000" in images.groups for images in (loaded.real, loaded.train)]
        assert sides == original, "parted and not refused"
        return False

    assert {refused(f"x{number}") for number in range(10)} == {True, False}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda fake: (fake / "images" / "00001.png").unlink(), "is not a file"),
        (lambda fake: (fake / "manifest.jsonl").write_text("{nonsense"), "damaged"),
        (lambda fake: (fake / "manifest.jsonl").write_text("\n"), "no images"),
        (
            lambda fake: Image.fromarray(np.zeros((16, 16), np.uint8)).save(
                fake / "images" / "00003.png"
            ),
            "differ: the first is 32 x 32 grey, 00003.png is 16 x 16 grey",
        ),
        (
            lambda fake: Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(
                fake / "images" / "00003.png"
            ),
            "00003.png is 32 x 32 colour",
        ),
        (lambda fake: edited(fake, file="../real/lying/l000_0.png"), "leads out of the folder"),
        (lambda fake: edited(fake, file="/etc/hosts"), "leads out of the folder"),
        (lambda fake: edited(fake, labels=5), "5 is no name"),
        (lambda fake: edited(fake, condition=["lying"]), "is no name"),
        (lambda fake: (fake / "manifest.jsonl").write_text("[1]\n"), "damaged"),
        (lambda fake: (fake / "manifest.jsonl").write_text("null\n"), "damaged"),
    ],
)
def test_a_damaged_synthesis_is_refused(tmp_path, damage, message):
    real, fake = real_folder(tmp_path / "real", 8), made_folder(tmp_path / "fake", 6)
    damage(fake)
    with pytest.raises(InputError, match=message):
        read_sets(real, fake, None, Where())


def test_missing_folders_and_conditions_are_refused(tmp_path):
    real, fake = real_folder(tmp_path / "real", 8), made_folder(tmp_path / "fake", 6)
    with pytest.raises(InputError, match="no folder"):
        read_sets(tmp_path / "nowhere", fake, None, Where())
    lines = (fake / "manifest.jsonl").read_text().splitlines()
    without = json.loads(lines[0]) | {"condition": None}
    (fake / "manifest.jsonl").write_text("\n".join([json.dumps(without), *lines[1:]]))
    with pytest.raises(InputError, match="others have none"):
        read_sets(real, fake, None, Where())


def test_label_pictures_of_a_synthesis_hold_numbers_not_colours(tmp_path):
    from medgen.io.synthetic import write_label_png

    real, fake = tmp_path / "real", tmp_path / "fake"
    annotated_folder(real)
    labels = np.arange(32 * 24).reshape(32, 24) % 3
    for name in ("images", "labels"):
        (fake / name).mkdir(parents=True)
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(fake / "images" / "0.png")
    write_label_png(fake / "labels" / "0.png", labels, {})
    line = {"file": "images/0.png", "labels": "labels/0.png", "index": 0}
    (fake / "manifest.jsonl").write_text(json.dumps(line))
    loaded = read_sets(real, fake, None, Where())
    assert np.array_equal(loaded.fake.labels[0, 0], labels)
