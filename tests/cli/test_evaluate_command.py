"""``medgen evaluate synthesis`` as a person runs it."""

from __future__ import annotations

import json

import pytest
from evaluation_cases import annotated_folder, made_folder, real_folder
from tiny_packages import save_features

from medgen.run_record import hash_file

QUICK = ("--features", "tiny-features", "--classifier-steps", 4, "--device", "cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    save_features(root / "shelf" / "tiny-features")
    real_folder(root / "real", 60)
    made_folder(root / "made", 40)
    return root


@pytest.fixture
def evaluate(cli, folders, monkeypatch):
    """The command on the folders' names, below their root."""
    monkeypatch.setenv("MEDGEN_MODELS", str(folders / "shelf"))
    monkeypatch.chdir(folders)
    return lambda *words: cli("evaluate", "synthesis", *words)


def test_it_writes_numbers_table_and_page(evaluate, folders):
    done = evaluate(
        "real", "made", "-o", "out", "--held-out", 0.5, "--group-pattern", "^([^_]+)_", *QUICK
    )
    assert done.exit_code == 0, done.stderr
    out = folders / "out"
    assert {p.name for p in out.iterdir()} == {
        "evaluation.json", "table.md", "report.html", "run.json",
    }  # fmt: skip
    result = json.loads((out / "evaluation.json").read_text())
    names = {"fid", "kid", "precision", "recall", "density", "coverage", "copy_rate", "ms_ssim",
             "class_accuracy", "class_accuracy_features"}  # fmt: skip
    assert set(result["metrics"]) == names
    for row in result["metrics"].values():
        assert row["n"][:2] == [result["images"]["real"], 40] and row["floor"] is not None
    assert result["model"]["model"] == "bars"
    table = (out / "table.md").read_text()
    assert table == done.stdout
    assert result["extractor"]["sha256"] in table and "| FID |" in table
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 48 and "http" not in page.replace("http-equiv", "")
    record = json.loads((out / "run.json").read_text())
    assert record["extractor"]["name"] == "tiny-features" and len(record["inputs"]) == 2


def test_an_earlier_evaluation_stands_beside_or_is_refused(evaluate, folders):
    assert evaluate("real", "made", "-o", "first", *QUICK).exit_code == 0
    again = evaluate("real", "made", "-o", "second", "--compare", "first", *QUICK)
    assert again.exit_code == 0, again.stderr
    assert "Beside earlier evaluations" in (folders / "second" / "table.md").read_text()
    other = json.loads((folders / "first" / "evaluation.json").read_text())
    other["extractor"]["sha256"] = "d" * 64
    (folders / "other.json").write_text(json.dumps(other))
    refused = evaluate("real", "made", "-o", "third", "--compare", "other.json", *QUICK)
    assert refused.exit_code == 2 and "d" * 64 in refused.stderr
    assert not (folders / "third").exists()


def test_dice_of_networks_that_learned_from_synthetic_pairs(evaluate, folders, monkeypatch):
    from medgen.tasks import segmentation

    monkeypatch.setattr(segmentation, "FEATURES", (8, 8, 8, 8, 8, 8))
    annotated_folder(folders / "hearts", 12)
    annotated_folder(folders / "fakes", 4, first=50)
    done = evaluate(
        "hearts", "fakes", "-o", "dice", "--held-out", 0.4, "--slices", "--dice",
        "--segmentation-steps", 3, "--segmentation-seeds", 1, "--json", *QUICK,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    dice = json.loads(done.stdout)["segmentation"]
    assert set(dice["dice"]) == {"synthetic only", "real only", "real + synthetic"}
    assert len(dice["tests"]) == 3
    assert "U-Net on held-out real patients" in (folders / "dice" / "table.md").read_text()


def test_too_few_images_and_missing_masks_say_so(evaluate, folders):
    made_folder(folders / "few", 19)
    done = evaluate("real", "few", "-o", "none", *QUICK)
    assert done.exit_code == 2 and "at least 20 are needed, got 19" in done.stderr
    done = evaluate("real", "made", "-o", "none", "--dice", *QUICK)
    assert done.exit_code == 2 and "FAKE has none" in done.stderr
    assert not (folders / "none").exists()


def test_leakage_is_refused(evaluate, folders):
    done = evaluate("real", "made", "--train", "real", "-o", "none", *QUICK)
    assert done.exit_code == 2 and "both held out and trained on" in done.stderr


def test_extractors_of_the_user_need_their_hash(evaluate, folders):
    path = folders / "mine.pt"
    path.write_bytes(b"anything")
    done = evaluate("real", "made", "-o", "none", "--features", path)
    assert done.exit_code == 2 and "--features-sha256" in done.stderr
    done = evaluate("real", "made", "-o", "none", "--features", path, "--features-sha256", "0" * 64)
    assert done.exit_code == 2 and hash_file(path) in done.stderr
    done = evaluate("real", "made", "-o", "none", "--features", "tiny-baseline")
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--conditions", "lying"), "NAME=SUBFOLDER"),
        (("--fit", "stretch"), "resample or crop"),
        (("--device", "tpu"), "unknown device"),
        (("--features-mean", "1,2,3"), "go together"),
        (("--features-mean", "1,2", "--features-std", "1,1,1"), "three numbers"),
        (("--features", "medgen-feature"), "unknown model"),
        (("--features", "tiny-features", "--compare", "nothing.json"), "cannot read"),
        (("--features", "tiny-features", "--conditions", "a=nowhere"), "no subfolders"),
    ],
)
def test_wrong_options_are_named(evaluate, folders, words, message):
    done = evaluate("real", "made", "-o", "none", *words)
    assert done.exit_code == 2 and message in done.stderr, done.stderr
    assert not (folders / "none").exists()
