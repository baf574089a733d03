"""Shards divide a cohort without loss or overlap; locks keep two runs out of one folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.batch.shards import Shard, locked, parse_shard
from medgen.errors import InputError


@given(names=st.sets(st.text(max_size=12), max_size=30), count=st.integers(1, 9))
def test_every_case_is_in_exactly_one_shard(names, count) -> None:
    for name in names:
        assert sum(Shard(n, count).holds(name) for n in range(1, count + 1)) == 1


def test_shards_are_of_about_the_same_size() -> None:
    names = [f"case-{n}" for n in range(2000)]
    sizes = [sum(Shard(n, 4).holds(name) for name in names) for n in range(1, 5)]
    assert min(sizes) > 400 and sum(sizes) == 2000


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4", ""])
def test_wrong_shards_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--shard must be"):
        parse_shard(text, {})


def test_slurm_arrays_may_start_anywhere_and_step() -> None:
    array = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10"}
    found = [
        parse_shard("slurm", {**array, "SLURM_ARRAY_TASK_STEP": "5", "SLURM_ARRAY_TASK_ID": str(i)})
        for i in (10, 15, 20, 25)
    ]
    assert found == [Shard(n, 4) for n in (1, 2, 3, 4)]
    with pytest.raises(InputError, match="array job"):
        parse_shard("slurm", {})
    with pytest.raises(InputError, match="counted from"):
        parse_shard("slurm", {**array, "SLURM_ARRAY_TASK_ID": "3"})


HOLD = """
import sys, pathlib
from medgen.batch.shards import Shard, locked
with locked(pathlib.Path(sys.argv[1]), Shard(int(sys.argv[2]), int(sys.argv[3]))):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, shard: Shard) -> subprocess.Popen[str]:
    """Another process that holds a lock until it dies."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(shard.number), str(shard.count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("held", "wanted", "allowed"),
    [
        (Shard(), Shard(), False),
        (Shard(1, 2), Shard(1, 2), False),
        (Shard(1, 2), Shard(2, 2), True),
        (Shard(1, 2), Shard(), False),
        (Shard(1, 2), Shard(1, 3), False),
    ],
)
def test_who_may_work_beside_whom(tmp_path: Path, held: Shard, wanted: Shard, allowed) -> None:
    other = holder(tmp_path, held)
    try:
        if allowed:
            with locked(tmp_path, wanted):
                pass
        else:
            with pytest.raises(InputError, match="another run") as caught:
                locked(tmp_path, wanted).__enter__()
            assert str(other.pid) in caught.value.message
    finally:
        other.kill()
        other.communicate()
    with locked(tmp_path, wanted):  # a killed process holds nothing
        pass
