"""Made images: the same bytes for the same seed, marked, and with all they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from tiny_packages import save_features, save_generator

import medgen
from medgen.errors import InputError
from medgen.io import read
from medgen.io.synthetic import read_facts
from medgen.package import TRAINING_FEATURES, ModelPackage, load_package
from medgen.run_record import hash_file
from medgen.tasks.latent_walks import arithmetic, grid, interpolate, invert_images
from medgen.tasks.nearest import TrainingImages, feature_arrays, training_images
from medgen.tasks.sampling import block_size
from medgen.tasks.synthesize import check_number, request, synthesize

LABELS = ("background", "cavity", "wall")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_generator(folder / "latents")
    attributes = {"attributes.safetensors": {"cancer:lumen": np.ones(8, np.float32)}}
    save_generator(folder / "styles", "stylegan2", arrays=attributes)
    save_generator(
        folder / "painter", "spade", labels=LABELS, conditions=(),
        synthesis={"modality": "MR", "orientation": "RA", "spacing_mm": (1.5, 2.0)},
    )  # fmt: skip
    save_generator(
        folder / "volumes", "spade", labels=LABELS, conditions=(),
        config={"spatial_dims": 3, "image_size": (8, 8, 4)},
        synthesis={"modality": "MR", "value_range": (0.0, 1.5)},
    )  # fmt: skip
    return folder


@pytest.fixture
def latents(shelf: Path) -> ModelPackage:
    return load_package(shelf / "latents")


@pytest.fixture
def styles(shelf: Path) -> ModelPackage:
    return load_package(shelf / "styles")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "manifest.jsonl").read_text().splitlines()]


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


@pytest.mark.parametrize("name", ["latents", "styles", "painter"])
def test_image_i_is_the_same_however_many_are_made(
    shelf: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medgen.tasks.sampling.BLOCK_VOXELS", {"cpu": 4 * 256})
    made = synthesize(shelf / name, n=11, seed=5, device="cpu")
    assert block_size(made.maker.method, "cpu") == 4
    many = made.images()
    for n in (1, 4, 6):
        assert np.array_equal(
            synthesize(shelf / name, n=n, seed=5, device="cpu").images(), many[:n]
        )
    assert not np.array_equal(synthesize(shelf / name, n=11, seed=6, device="cpu").images(), many)
    assert len({image.tobytes() for image in many}) == 11


def test_conditions_take_turns(latents: ModelPackage) -> None:
    both = list(synthesize(latents, n=4, device="cpu"))
    assert [one.sample.condition for one in both] == ["cancer", "benign", "cancer", "benign"]
    benign = list(synthesize(latents, conditions="benign", n=4, device="cpu"))
    assert np.array_equal(both[1].image, benign[1].image)
    # The same latent, another condition: the number alone decides the latent.
    assert np.array_equal(both[0].sample.code.values, benign[0].sample.code.values)
    assert not np.array_equal(both[0].image, benign[0].image)


def test_truncation_makes_images_alike(styles: ModelPackage) -> None:
    def spread(truncation: float) -> float:
        made = synthesize(styles, conditions="cancer", n=8, truncation=truncation, device="cpu")
        return float(made.images().astype(float).std(axis=0).mean())

    assert spread(0.0) == 0.0 < spread(0.4) < spread(1.0)


def test_the_same_request_gives_the_same_files(latents: ModelPackage, tmp_path: Path) -> None:
    for name in "ab":
        synthesize(latents, n=5, seed=3, device="cpu").save(tmp_path / name)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert len(list((tmp_path / "a" / "images").iterdir())) == 5


def test_the_manifest_says_all_and_the_images_can_be_made_again(
    latents: ModelPackage, tmp_path: Path
) -> None:
    import torch

    made = synthesize(latents, n=3, seed=9, device="cpu")
    made.save(tmp_path / "out")
    entries = lines(tmp_path / "out")
    assert [entry["index"] for entry in entries] == [0, 1, 2]
    for entry in entries:
        path = tmp_path / "out" / entry["file"]
        assert hash_file(path) == entry["sha256"]
        assert entry["model_sha256"] == latents.sha256
        assert (entry["seed"], entry["truncation"]) == (9, 1.0)
        assert entry["nearest_training_distance"] is None
        assert "no features" in entry["nearest_training_reason"]
        facts = read_facts(path)
        assert facts is not None and facts["condition"] == entry["condition"]
        latent = torch.tensor([entry["latent"]])
        number = latents.synthesis.condition_names.index(entry["condition"])
        image = made.maker.method.generate(latent, torch.tensor([number]))["image"][0]
        again = torch.round((image + 1) * 127.5).to(torch.uint8).numpy()
        assert np.abs(again.astype(int) - read(path).voxels).max() <= 1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["synthetic"] is True
    assert record["model"]["sha256"] == latents.sha256


def test_label_maps_lie_beside_images(shelf: Path, tmp_path: Path) -> None:
    made = synthesize(shelf / "painter", n=3, device="cpu")
    made.save(tmp_path / "png")
    made.save(tmp_path / "nifti", format="nifti")
    for number, (one, entry) in enumerate(zip(made, lines(tmp_path / "png"), strict=True)):
        assert entry["label_names"] == list(LABELS)
        assert Path(entry["labels"]).name == Path(entry["file"]).name
        with PIL.Image.open(tmp_path / "png" / entry["labels"]) as image:
            stored = np.asarray(image).T
        assert one.labels is not None
        # A picture's columns run to the left and its rows to the back; the model's axes do not.
        assert np.array_equal(stored, one.labels[::-1, ::-1])
        names = lines(tmp_path / "nifti")[number]
        image, labels = (read(tmp_path / "nifti" / names[key]) for key in ("file", "labels"))
        assert np.array_equal(labels.voxels[0], one.labels)
        assert np.allclose(image.affine, labels.affine)
        assert image.geometry.axis_codes[:2] == "RA"
        assert np.allclose(image.geometry.spacing_mm[:2], (1.5, 2.0))


@pytest.mark.parametrize("format", ["nifti", "dicom"])
def test_volumes(shelf: Path, tmp_path: Path, format: str) -> None:
    made = synthesize(shelf / "volumes", n=2, device="cpu")
    made.save(tmp_path / "out", format=format)
    for one, entry in zip(made, lines(tmp_path / "out"), strict=True):
        volume = read(tmp_path / "out" / entry["file"])
        assert volume.geometry.axis_codes == "RAS" or format == "dicom"
        expected = np.sort((one.image[0].ravel() + 1) / 2 * 1.5)
        assert np.abs(np.sort(volume.voxels.ravel()) - expected).max() < 1e-3
        assert read(tmp_path / "out" / entry["labels"]).voxels.shape == (1, 8, 8, 4)


def test_given_label_maps_are_painted(shelf: Path, tmp_path: Path) -> None:
    made = synthesize(shelf / "painter", n=3, device="cpu")
    for format in ("png", "nifti"):
        made.save(tmp_path / format, format=format)
        again = synthesize(
            shelf / "painter", n=10, masks=tmp_path / format / "labels", device="cpu"
        )
        for one, other in zip(made, again, strict=True):
            assert one.labels is not None and other.labels is not None
            assert np.array_equal(one.labels, other.labels)


def test_masks_that_do_not_fit_are_refused(shelf: Path, tmp_path: Path) -> None:
    def paint(name: str = "painter") -> None:
        synthesize(shelf / name, masks=tmp_path, device="cpu")

    with pytest.raises(InputError, match="no label maps"):
        paint()
    with pytest.raises(InputError, match="cannot paint"):
        paint("latents")
    for image, problem in (
        (np.full((16, 16), 3, np.uint8), "knows 0 to 2"),
        (np.zeros((16, 15), np.uint8), "15 x 16"),
        (np.zeros((16, 16, 3), np.uint8), "in colour"),
    ):
        PIL.Image.fromarray(image).save(tmp_path / "x.png")
        with pytest.raises(InputError, match=problem):
            paint()


def test_distances_to_training_images(shelf: Path, tmp_path: Path) -> None:
    """An image that is in the training set has distance 0, and no other has."""
    from medgen.features import FeatureExtractor

    folder = tmp_path / "models"
    extractor = save_features(folder / "tiny-features")
    extract = FeatureExtractor.load(extractor.folder)
    copied = list(synthesize(shelf / "latents", n=2, device="cpu"))
    held_out = np.random.default_rng(0).uniform(-1, 1, (4, 3, 16, 16)).astype(np.float32)
    arrays = feature_arrays(extract, np.stack([one.image for one in copied]), held_out, None)
    package = save_generator(
        folder / "copier",
        arrays={TRAINING_FEATURES: arrays},
        synthesis={"extractor": {"name": str(extractor.folder), "sha256": extractor.sha256}},
    )
    found = training_images(package)
    assert isinstance(found, TrainingImages)
    synthesize(package, n=4, device="cpu").save(tmp_path / "out")
    distances = [entry["nearest_training_distance"] for entry in lines(tmp_path / "out")]
    # Features are kept in half precision.
    assert max(distances[:2]) < 0.2 * min(distances[2:])
    assert lines(tmp_path / "out")[0]["nearest_training_percentile"] == 0
    assert "nearest_training_reason" not in lines(tmp_path / "out")[0]
    other = save_generator(
        folder / "other",
        arrays={TRAINING_FEATURES: arrays},
        synthesis={"extractor": {"name": str(extractor.folder), "sha256": "0" * 64}},
    )
    assert "another version" in str(training_images(other))


@pytest.mark.parametrize(("n", "problem"), [
    (0, "at least 1"), (-5, "at least 1"), (10**6, "GB"), (10**12, "GB"),
])  # fmt: skip
def test_absurd_numbers_are_refused(latents: ModelPackage, n: int, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        check_number(request(latents), n)


def test_a_full_disk_is_foreseen(
    latents: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match="are free"):
        check_number(request(latents), 100, tmp_path / "a" / "b")


@pytest.mark.parametrize("truncation", [-0.1, 1.1, float("nan")])
def test_a_truncation_out_of_range_is_refused(latents: ModelPackage, truncation: float) -> None:
    with pytest.raises(InputError, match="truncation"):
        request(latents, truncation=truncation)


def test_overwriting_replaces_only_what_a_synthesis_wrote(
    latents: ModelPackage, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    synthesize(latents, n=5, device="cpu").save(out)
    with pytest.raises(InputError, match="already holds"):
        synthesize(latents, n=2, device="cpu").save(out)
    synthesize(latents, n=2, device="cpu").save(out, overwrite=True)
    assert len(list((out / "images").iterdir())) == 2
    (out / "manifest.jsonl").unlink()
    with pytest.raises(InputError, match="not written by medgen"):
        synthesize(latents, n=2, device="cpu").save(out, overwrite=True)
    assert len(list((out / "images").iterdir())) == 2


def test_a_failure_leaves_nothing(
    latents: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medgen.report.gallery.write_gallery", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthesize(latents, n=2, device="cpu").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "format", "problem"), [
    ("latents", "gif", "unknown format"), ("latents", "nifti", "colour"),
    ("volumes", "png", "volumes"),
])  # fmt: skip
def test_formats_that_cannot_hold_the_image(
    shelf: Path, tmp_path: Path, name: str, format: str, problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        synthesize(shelf / name, n=1, device="cpu").save(tmp_path / "out", format=format)


def test_interpolation_starts_and_ends_at_images_of_the_seed(
    latents: ModelPackage, styles: ModelPackage
) -> None:
    for package in (latents, styles):
        wish = request(package, ["cancer"], seed=2)
        images = interpolate(wish, "0", "3", steps=5, device="cpu").images()
        whole = synthesize(package, conditions="cancer", n=4, seed=2, device="cpu").images()
        assert np.abs(images[[0, -1]].astype(int) - whole[[0, 3]]).max() <= 1


def test_interpolation_between_conditions_needs_styles(
    latents: ModelPackage, styles: ModelPackage
) -> None:
    images = interpolate(request(styles), "cancer", "benign", steps=3, device="cpu").images()
    whole = synthesize(styles, n=1, conditions="benign", device="cpu").images()
    assert np.abs(images[-1].astype(int) - whole[0]).max() <= 1
    with pytest.raises(InputError, match="cannot mix conditions"):
        interpolate(request(latents), "cancer", "benign", device="cpu")
    with pytest.raises(InputError, match="one must be chosen"):
        interpolate(request(latents), "0", "1", device="cpu")
    with pytest.raises(InputError, match="Did you mean 'benign'"):
        interpolate(request(styles), "cancer", "benine", device="cpu")


def test_the_corners_of_the_grid_are_images_of_the_seed(latents: ModelPackage) -> None:
    wish = request(latents, ["cancer"])
    made = grid(wish, steps=2, device="cpu")
    assert made.columns == 5
    images = made.images()
    whole = synthesize(latents, conditions="cancer", n=9, device="cpu").images()
    corners = images[[0, 4, 20, 24]].astype(int)
    assert np.abs(corners - whole[[0, 2, 6, 8]]).max() <= 1


def test_arithmetic_of_folders_and_attributes(
    styles: ModelPackage, latents: ModelPackage, tmp_path: Path
) -> None:
    wish = request(styles, ["cancer"])
    synthesize(styles, conditions="cancer", n=4, device="cpu").save(tmp_path / "made")
    (tmp_path / "some").mkdir()
    for path in sorted((tmp_path / "made" / "images").iterdir())[:2]:
        (tmp_path / "some" / path.name).write_bytes(path.read_bytes())
    sets = {"all": tmp_path / "made", "some": tmp_path / "some"}
    made = list(arithmetic(wish, "all - some + cancer:lumen", sets=sets, device="cpu"))
    whole, some, lumen, result = (one.sample.code for one in made)
    assert {code.space for code in (whole, some, lumen, result)} == {"w"}
    assert np.allclose(result.values, whole.values - some.values + 1, atol=1e-5)
    # Codes are drawn again from what each file says, not searched for.
    mean = [one.sample.code for one in interpolate(wish, "0", "1", steps=3, device="cpu")][1]
    assert np.allclose(some.values, mean.values, atol=1e-5)
    with pytest.raises(InputError, match="no set of images 'cancer:lumin'"):
        arithmetic(wish, "cancer:lumin", device="cpu")
    with pytest.raises(InputError, match="not by this model"):
        arithmetic(request(latents, ["cancer"]), "x", sets={"x": tmp_path / "made"}, device="cpu")
    with pytest.raises(InputError, match="there is no folder"):
        arithmetic(wish, "x", sets={"x": tmp_path / "absent"}, device="cpu")


@pytest.mark.parametrize("change", [
    {"latent": [1.0, 2.0]}, {"latent": [[1.0] * 8]}, {"latent": [float("nan")] * 8},
    {"latent": [1e60] * 8}, {"latent": "x"}, {"latent_space": "q"}, {"latent_space": "w"},
    {"truncation": float("nan")}, {"truncation": "x"}, {"condition": ["cancer"]}, {"file": 3},
], ids=str)  # fmt: skip
def test_a_manifest_that_was_edited_is_refused(
    latents: ModelPackage, tmp_path: Path, change: dict[str, Any]
) -> None:
    synthesize(latents, conditions="cancer", n=2, device="cpu").save(tmp_path / "made")
    first, *rest = lines(tmp_path / "made")
    text = "\n".join(json.dumps(line) for line in (first | change, *rest))
    (tmp_path / "made" / "manifest.jsonl").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        arithmetic(request(latents, ["cancer"]), "x", sets={"x": tmp_path / "made"}, device="cpu")


@pytest.mark.parametrize("name", ["latents", "styles"])
def test_inversion_finds_an_image_of_the_model(shelf: Path, name: str, tmp_path: Path) -> None:
    made = synthesize(shelf / name, conditions="cancer", n=2, seed=4, device="cpu")
    target = made.images()[1]
    # Without the facts: as a real image would come.
    PIL.Image.fromarray(target.transpose(2, 1, 0)).save(tmp_path / "real.png")
    wish = request(shelf / name, ["cancer"], seed=4)
    found = invert_images(wish, [tmp_path / "real.png"], device="cpu")
    one = next(iter(found))

    def apart(image: np.ndarray) -> float:
        return float(np.sqrt(np.mean((image.astype(float) - target) ** 2)))

    assert one.sample.details["residual"] < 0.5 * apart(made.images()[0])
    assert abs(apart(one.pixels()) - one.sample.details["residual"]) < 1
    again = next(iter(invert_images(wish, [tmp_path / "real.png"], device="cpu")))
    assert np.array_equal(one.sample.code.values, again.sample.code.values)


def test_images_that_cannot_be_inverted_are_refused(shelf: Path, tmp_path: Path) -> None:
    PIL.Image.fromarray(np.zeros((16, 32), np.uint8)).save(tmp_path / "wide.png")
    wish = request(shelf / "latents", ["cancer"])
    with pytest.raises(InputError, match="proportions"):
        invert_images(wish, [tmp_path / "wide.png"], device="cpu")
    with pytest.raises(InputError, match="no image"):
        invert_images(wish, [tmp_path / "absent.png"], device="cpu")
    with pytest.raises(InputError, match="cannot be inverted"):
        invert_images(request(shelf / "painter"), [tmp_path / "wide.png"], device="cpu")


def test_it_is_part_of_the_public_api() -> None:
    assert medgen.synthesize is synthesize
