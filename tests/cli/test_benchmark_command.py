"""`medgen benchmark synthesis` on the command line."""

from __future__ import annotations

import json

import numpy as np


def test_a_dry_run_says_what_would_be_done_and_does_nothing(cli, tmp_path):
    out = tmp_path / "out"
    done = cli(
        "benchmark", "synthesis", tmp_path, "-o", out, "--methods", "dcgan, spade",
        "--seeds", 2, "--minutes-per-method", 1.5, "--dry-run",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["settings"]["minutes"] == 1.5
    assert plan["settings"]["steps"] is None
    assert "runs/spade-seed1" in plan["cells"]
    assert not [cell for cell in plan["cells"] if "lsgan" in cell]
    assert not out.exists()


def test_what_cannot_be_is_refused_with_exit_code_2(cli, tmp_path):
    dataset, out = tmp_path / "set", tmp_path / "out"
    dataset.mkdir()
    np.savez(dataset / "patient1_ed.npz", image=np.zeros((2, 16, 16), np.uint8))
    base = ("benchmark", "synthesis", dataset, "-o", out)
    for words, message in (
        (("--methods", "dcgan,biggan"), "no method 'biggan'"),
        (("--methods", ","), "no method ''"),
        (("--suite", "baur"), "unknown suite 'baur'"),
        (("--steps", 5, "--minutes-per-method", 1), "exclude each other"),
        (("--minutes-per-method", 0), "minutes"),
        (("--samples", 5), "20"),
        (("--features", "nothing"), "nothing"),
        (("--device", "gpu"), "gpu"),
        (("-o", dataset / "out"), "inside the input"),
    ):
        done = cli(*base, *words)
        assert done.exit_code == 2, (words, done.stderr)
        assert message in done.stderr, (words, done.stderr)
        assert not out.exists()
