"""Every example runs, prints the number it asserts, and saves a picture; none is forgotten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# What each prints before its number.
LISTED = {
    "baseline_on_a_phantom.py": "average precision",
    "calibrate_a_site.py": "people with a finding",
    "cohort_of_phantoms.py": "cases done",
    "gan_in_the_plane.py": "modes covered",
    "plane_of_heads.py": "nearest neighbours of the same contrast",
    "where_is_it.py": "distance",
}


def test_every_example_is_listed_here_and_in_the_readme():
    files = {path.name for path in EXAMPLES.glob("*.py")}
    assert files == set(LISTED)
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(name in readme for name in files)


@pytest.mark.parametrize("name", sorted(LISTED))
def test_example_runs(name, tmp_path):
    picture = tmp_path / "picture.png"
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, picture],
        capture_output=True,
        text=True,
        timeout=170,
        env={**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert LISTED[name] in done.stdout
    assert any(character.isdigit() for character in done.stdout)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
    assert list(tmp_path.iterdir()) == [picture]
