"""Bad input: one clear error, exit code 2, and nothing written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from tiny_packages import Cli, phantom

from medgen.batch.ledger import Entry
from medgen.cli.batch_view import _Lines
from medgen.io import write_dicom_series, write_nifti

BASELINE = ("--model", "tiny-baseline")


def nifti(path: Path, voxels: Any, affine: Any = None) -> Path:
    grid = phantom().image.affine if affine is None else affine
    nib.save(nib.Nifti1Image(np.asarray(voxels), grid), path)
    return path


def voxels(**changes: float) -> Any:
    """A good scan with single voxels set: ``voxels(nan=...)``."""
    array = phantom().image.voxels[0].copy()
    for place, value in enumerate(changes.values()):
        array[10 + place, 12, 9] = value
    return array


def missing(folder: Path) -> Path:
    return folder / "absent.nii.gz"


def empty(folder: Path) -> Path:
    (folder / "empty.nii.gz").touch()
    return folder / "empty.nii.gz"


def truncated_gz(folder: Path) -> Path:
    path = nifti(folder / "cut.nii.gz", voxels())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def truncated(folder: Path) -> Path:
    path = nifti(folder / "cut.nii", voxels())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def text(folder: Path) -> Path:
    (folder / "text.nii.gz").write_text("404 not found")
    return folder / "text.nii.gz"


def zipped_text(folder: Path) -> Path:
    (folder / "text.nii.gz").write_bytes(gzip.compress(b"404 not found"))
    return folder / "text.nii.gz"


def all_zero(folder: Path) -> Path:
    return nifti(folder / "zero.nii.gz", np.zeros((24, 28, 20), np.float32))


def constant(folder: Path) -> Path:
    return nifti(folder / "constant.nii.gz", np.full((24, 28, 20), 7, np.int16))


def not_a_number(folder: Path) -> Path:
    return nifti(folder / "nan.nii.gz", voxels(one=np.nan, two=np.nan))


def infinite(folder: Path) -> Path:
    return nifti(folder / "inf.nii.gz", voxels(one=np.inf))


def singular(folder: Path) -> Path:
    path = nifti(folder / "singular.nii", voxels())
    image = nib.load(path)
    image.header["srow_z"] = 0
    header = image.header.binaryblock
    path.write_bytes(header + path.read_bytes()[len(header) :])
    return path


def without_affine(folder: Path) -> Path:
    image = nib.Nifti1Image(voxels(), None)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nib.save(image, folder / "nowhere.nii.gz")
    return folder / "nowhere.nii.gz"


def four_d(folder: Path) -> Path:
    return nifti(folder / "bold.nii.gz", np.stack([voxels()] * 3, axis=-1))


def tiny(folder: Path) -> Path:
    return nifti(folder / "tiny.nii.gz", np.random.default_rng(0).random((8, 8, 8), np.float32))


def huge(folder: Path) -> Path:
    """1024 x 1024 x 1024 voxels, of which the disk holds only the header."""
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.diag([0.5, 0.5, 0.5, 1]))
    image.header.set_data_shape((1024, 1024, 1024))
    path = folder / "huge.nii"
    with path.open("wb") as file:
        file.write(image.header.binaryblock + bytes(4))
        file.truncate(352 + 1024**3)
    return path


def colour(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "colour.png")
    return folder / "colour.png"


def no_dicom(folder: Path) -> Path:
    (folder / "dicom").mkdir()
    (folder / "dicom" / "readme.txt").write_text("nothing here")
    return folder / "dicom"


def two_series(folder: Path) -> Path:
    for number in (1, 2):
        write_dicom_series(
            folder / "dicom" / str(number), phantom().image, seed="s", series_number=number
        )
    return folder / "dicom"


def without_pixels(folder: Path) -> Path:
    import pydicom

    for path in write_dicom_series(folder / "dicom", phantom().image, seed="s"):
        dataset = pydicom.dcmread(path)
        del dataset.PixelData
        dataset.save_as(path)
    return folder / "dicom"


CASES: list[tuple[Callable[[Path], Path], str]] = [
    (missing, "no file or folder"),
    (empty, "empty"),
    (truncated_gz, "damaged|incomplete|truncated|ends"),
    (truncated, "damaged|incomplete|truncated|ends|short"),
    (text, "text"),
    (zipped_text, "without a NIfTI header"),
    (all_zero, "every voxel is 0"),
    (constant, "constant"),
    (not_a_number, "2 NaN"),
    (infinite, "1 infinite"),
    (singular, "singular"),
    (without_affine, "does not say where its voxels are"),
    (four_d, "--frame"),
    (tiny, "too small"),
    (huge, "GB"),
    (colour, "colour"),
    (no_dicom, "no readable DICOM image"),
    (two_series, "--series"),
    (without_pixels, "no image: only 20 x no pixels"),
]


def assert_refused(result: Any, out: Path, pattern: str) -> None:
    """One error, exit 2, no traceback, and no trace of an output."""
    import re

    assert result.exit_code == 2, result.output
    assert result.stderr.count("Error:") == 1, result.stderr
    assert re.search(pattern, result.stderr), result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not out.exists()
    assert not list(out.parent.glob(".medgen-*")), "a draft was left behind"


@pytest.mark.parametrize(("make", "pattern"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_scans(cli: Cli, tmp_path: Path, make: Callable[[Path], Path], pattern: str) -> None:
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in")
    out = tmp_path / "results" / "out"
    out.parent.mkdir()
    words = ("-o", out, *BASELINE, "--max-memory", 8)
    assert_refused(cli("detect-anomalies", source, *words), out, pattern)
    assert out.parent.is_dir()


def wide(folder: Path) -> Path:
    return nifti(folder / "wide.nii.gz", voxels(), np.diag([60.0, 60, 60, 1]))


def ct(folder: Path) -> Path:
    import pydicom

    for path in write_dicom_series(folder / "dicom", phantom().image, seed="s"):
        dataset = pydicom.dcmread(path)
        dataset.Modality = "CT"
        dataset.save_as(path)
    return folder / "dicom"


HEADERS = (truncated, singular, without_affine, four_d, tiny, huge, wide, colour, ct, two_series,
           without_pixels)  # fmt: skip


@pytest.mark.parametrize("make", HEADERS, ids=[make.__name__ for make in HEADERS])
def test_check_and_dry_run_refuse_what_the_run_refuses(
    cli: Cli, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """Whatever headers tell is said with the same words before, and without, any work."""
    source, out = make(tmp_path), tmp_path / "out"
    words = ("detect-anomalies", source, "-o", out, *BASELINE, "--max-memory", 8)
    real, dry = cli(*words), cli(*words, "--dry-run")
    assert_refused(dry, out, ".")
    assert dry.stderr == real.stderr
    if make in (two_series, huge):  # each series alone is fine; check has another memory limit
        return
    found = json.loads(cli("check", source, "--json").stdout)[0]
    if make is without_pixels:  # there is no image that a model could be asked about
        assert found["error"] in real.stderr
        return
    (image,) = found["images"]
    verdict = next(model for model in image["models"] if model["name"] == "tiny-baseline")
    assert not verdict["takes"]
    assert verdict["why"] in real.stderr


def test_wrong_dimensionality(cli: Cli, tmp_path: Path) -> None:
    pixels = phantom().image.voxels[0][:, :, 10]
    Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8)).save(tmp_path / "slice.png")
    out = tmp_path / "out"
    result = cli("detect-anomalies", tmp_path / "slice.png", "-o", out, "--model", "tiny-restore")
    assert_refused(result, out, "takes 3-D scans, this one is 2-D")


def test_unknown_model(cli: Cli, scan: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("detect-anomalies", scan, "-o", out, "--model", "tiny-restor")
    assert_refused(result, out, "Did you mean 'tiny-restore'")


def damaged(shelf: Path, folder: Path, name: str) -> Path:
    """A copy of the network's package with one file changed."""
    copy = Path(shutil.copytree(shelf / "tiny-restore", folder / "changed"))
    if name == "medgen.json":
        values = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**values, "format": 99}))
    else:
        content = bytearray((copy / name).read_bytes())
        content[-1] ^= 1
        (copy / name).write_bytes(content)
    return copy


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("weights.safetensors.xz", "changed or damaged"), ("medgen.json", "format 99")],
)
def test_bad_packages(
    cli: Cli, scan: Path, shelf: Path, tmp_path: Path, name: str, pattern: str
) -> None:
    out = tmp_path / "out"
    package = damaged(shelf, tmp_path, name)
    assert_refused(cli("detect-anomalies", scan, "-o", out, "--model", package), out, pattern)
    verified = cli("models", "verify", package)
    assert verified.exit_code == 2
    assert pattern.split("|")[0] in verified.stderr


def test_absent_and_unknown_devices(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    out = tmp_path / "out"
    words = ("detect-anomalies", scan, "-o", out, *BASELINE, "--device")
    assert_refused(cli(*words, "cuda"), out, "finds no CUDA")
    assert_refused(cli(*words, "cuda:1"), out, "finds no CUDA")
    assert_refused(cli(*words, "gpu"), out, "unknown device 'gpu'")


def test_device_number_beyond_the_last(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    out = tmp_path / "out"
    words = ("-o", out, *BASELINE, "--device", "cuda:2")
    assert_refused(cli("detect-anomalies", scan, *words), out, "only 2 CUDA devices")


def test_existing_output_is_refused_before_the_work(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text("old")
    monkeypatch.setattr("medgen.tasks.detect.detect_anomalies", lambda *_, **__: 1 / 0)
    result = cli("detect-anomalies", scan, "-o", tmp_path, *BASELINE)
    assert result.exit_code == 2
    assert "already holds run.json" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_output_that_is_no_folder(cli: Cli, scan: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for target in (file, file / "below", tmp_path / "map.nii.gz"):
        result = cli("detect-anomalies", scan, "-o", target, *BASELINE)
        assert result.exit_code == 2, result.output
        assert result.stderr.count("Error:") == 1
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder nobody may write to")
def test_unwritable_output(cli: Cli, scan: Path) -> None:
    result = cli("detect-anomalies", scan, "-o", "/proc/medgen/out", *BASELINE)
    assert result.exit_code == 2
    assert "cannot write to /proc/medgen/out" in result.stderr


@pytest.mark.parametrize("report", ["--report", "--no-report"])
def test_full_disk(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: str
) -> None:
    """A network disk may say that it is full only when the last bytes are flushed."""
    written = []

    def flush(handle: int) -> None:
        written.append(handle)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", flush)
    out = tmp_path / "out"
    result = cli("detect-anomalies", scan, "-o", out, *BASELINE, report)
    assert_refused(result, out, "disk is full|No space left")


def test_disk_quota_reached(cli: Cli, scan: Path, tmp_path: Path) -> None:
    """The system itself refuses to write more than a few kilobytes to one file."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = tmp_path / "out"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        result = cli("detect-anomalies", scan, "-o", out, *BASELINE, "--no-report")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(result, out, "too large")


def test_an_earlier_result_survives_a_failed_overwrite(
    cli: Cli, scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("detect-anomalies", scan, "-o", tmp_path / "out", "--no-report", *BASELINE)
    assert cli(*words).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def flush(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", flush)
    assert cli(*words, "--overwrite").exit_code == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_header_values_do_not_command_the_terminal(cli: Cli, tmp_path: Path) -> None:
    for number in (1, 2):
        for path in write_dicom_series(
            tmp_path / "s" / str(number), phantom().image, seed=str(number), series_number=number
        ):
            header = pydicom.dcmread(path)
            header.SeriesDescription = "\x1b[31mred"
            header.save_as(path)
    for command in ("check", "detect-anomalies"):
        extra = ("-o", tmp_path / "out") if command == "detect-anomalies" else ()
        result = cli(command, tmp_path / "s", *extra)
        assert "red" in result.output
        assert "\x1b[31mred" not in result.output


def test_names_of_cases_do_not_command_the_terminal(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    image = phantom().image
    write_nifti(tmp_path / "in" / "a\n\x1b[31mred.nii.gz", image.voxels[0], image.geometry)
    (tmp_path / "p.yaml").write_text(
        "name: p\ntask: {name: detect-anomalies, model: tiny-restore}\n"
    )
    result = cli("batch", "plan", tmp_path / "p.yaml", tmp_path / "in", "-v", "-o", tmp_path / "o")
    assert result.exit_code == 0 and "red" in result.output
    assert "\x1b[31mred" not in result.output


def test_progress_in_a_log_keeps_a_line_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines()
    lines.planned(1, 0)
    assert capsys.readouterr().err == "1 case to do, 0 need no work\n"
    lines.ended(Entry("a\n\x1b[31mb", "failed", reason="\x1b[2Jno"))
    assert capsys.readouterr().err.splitlines() == ["1/1 failed a\ufffd\ufffd[31mb: \ufffd[2Jno"]
