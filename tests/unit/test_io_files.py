"""Files appear whole or not at all, and the reason is said in plain words."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medgen import io
from medgen.errors import InputError
from medgen.volume import Geometry


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_atomic_path_writes_and_makes_parents(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.txt"
    with io.atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.name.endswith("c.txt")
        assert not target.exists()
        temporary.write_text("done")
    assert target.read_text() == "done"
    assert listing(tmp_path) == ["a", "a/b", "a/b/c.txt"]


def test_atomic_path_refuses_existing_before_the_block_runs(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    target.write_text("old")
    with pytest.raises(InputError, match=r"exists already.*c.txt"), io.atomic_path(target):
        pytest.fail("the block must not run")
    with io.atomic_path(target, overwrite=True) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "c.txt"
    with pytest.raises(InputError, match="exists"), io.atomic_path(target) as temporary:
        temporary.write_text("mine")
        target.write_text("somebody else's")
    assert target.read_text() == "somebody else's"
    assert listing(tmp_path) == ["c.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path: Path, error: BaseException) -> None:
    old = tmp_path / "old.txt"
    old.write_text("old")
    for target in (old, tmp_path / "new" / "deep" / "a.txt"):
        with pytest.raises(type(error)), io.atomic_path(target, overwrite=True) as temporary:
            temporary.write_text("half")
            raise error
    assert listing(tmp_path) == ["old.txt"]
    assert old.read_text() == "old"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
    ],
)
def test_the_reason_is_said(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught, io.atomic_path(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert caught.value.hint
    assert listing(tmp_path) == []


def test_other_errors_of_the_system_pass(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ENOMSG"), io.atomic_path(tmp_path / "a"):
        raise OSError(errno.ENOMSG, "ENOMSG")


def test_a_disk_that_is_full_at_the_last_moment(tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    geometry = Geometry((3, 3, 3), np.eye(4))
    with pytest.raises(InputError, match="disk is full"):
        io.write_nifti(tmp_path / "a.nii.gz", np.ones((3, 3, 3)), geometry)
    assert listing(tmp_path) == []


def test_a_real_limit_on_file_size_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, sys, numpy as np, medgen.io as io\n"
        "from medgen.volume import Geometry\n"
        "from medgen.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "values = np.random.default_rng(0).random((64, 64, 64))\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        io.write_nifti(path, values, Geometry(values.shape, np.eye(4)))\n"
        "    except InputError as error:\n"
        "        print(error)\n"
    )
    paths = [str(tmp_path / name) for name in ("a.nii", "a.nii.gz")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert done.stdout.count("too large for this disk") == 2, done.stderr
    assert listing(tmp_path) == []


def test_parent_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(InputError, match="not a folder"), io.atomic_path(target):
            pytest.fail("the block must not run")
    with pytest.raises(InputError, match="is a file"), io.atomic_folder(tmp_path / "file"):
        pytest.fail("the block must not run")


def test_target_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"), io.atomic_path(tmp_path, overwrite=True):
        pytest.fail("the block must not run")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(InputError, match="may not write"),
        io.atomic_path(tmp_path / "a") as temporary,
    ):
        temporary.write_text("x")


def test_atomic_folder_appears_at_once(tmp_path: Path) -> None:
    target = tmp_path / "x" / "out"
    with io.atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "a.txt").write_text("1")
        (temporary / "sub" / "b.txt").write_text("2")
        assert not target.exists()
    assert listing(tmp_path) == ["x", "x/out", "x/out/a.txt", "x/out/sub", "x/out/sub/b.txt"]


def test_atomic_folder_adds_to_an_existing_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    (tmp_path / "out" / "a.txt").write_text("old")
    with (
        pytest.raises(InputError, match=r"exists already.*a.txt"),
        io.atomic_folder(tmp_path / "out") as temporary,
    ):
        (temporary / "a.txt").write_text("new")
        (temporary / "b.txt").write_text("new")
    assert listing(tmp_path / "out") == ["a.txt", "mine.txt"]
    with io.atomic_folder(tmp_path / "out", overwrite=True) as temporary:
        (temporary / "a.txt").write_text("new")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b.txt").write_text("new")
    assert listing(tmp_path) == ["out", "out/a.txt", "out/mine.txt", "out/sub", "out/sub/b.txt"]
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_atomic_folder_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), io.atomic_folder(tmp_path / "a" / "b") as temporary:
        (temporary / "a.txt").write_text("half")
        raise ValueError("x")
    assert listing(tmp_path) == []


def test_refuse_existing_names_the_first_and_counts(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match=r"/a \(and 1 more\)"):
        io.refuse_existing([tmp_path / name for name in "abc"], overwrite=False)
    io.refuse_existing([tmp_path / "a"], overwrite=True)
    io.refuse_existing([tmp_path / "c"], overwrite=False)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    with io.atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
