"""What the cohort engine promises, measured: nothing lost when killed, fast, and flat in memory.

    python benchmarks/cohort.py --output benchmarks/results/cohort.md

Three parts, each of which can be chosen with ``--part``:

killed      A DICOM archive of 200 small heads is run once in peace, and once with the whole run
            killed (SIGKILL) at five random moments and started again. Every file must be the same,
            but for those that hold times; of DICOM objects all but the moment they were made.
throughput  Heads of 160 x 192 x 160 voxels through ``brain-mr``, and through the same network in
            overlapping tiles, where computing dominates: cases per minute from the first outcome
            to the last, against the bare network on the same prepared heads, in this process with
            all cores, before and after. The rate with the start of the workers is given beside it.
memory      1,000 small heads: resident memory of the run and of its workers, every half second,
            as means over early, middle and late cases; the ratio is late to early.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pydicom

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

SMALL = """
name: small
description: Bright voxels of small heads
images: {require: []}
task: {name: detect-anomalies, model: tiny-baseline, report: false, dicom: [seg]}
"""
ORDINARY = """
name: ordinary
description: brain-mr on heads of ordinary size
images: {require: []}
task: {name: detect-anomalies, model: MODEL, report: REPORT}
"""
MOMENTS = {"ContributionDateTime"} | {
    f"{what}{unit}"
    for what in ("Content", "InstanceCreation", "Series", "Acquisition")
    for unit in ("Date", "Time")
}
TIMED = ("run.json", "index.html", "summary.json", "summary.tsv", ".sqlite")


def start(pipeline: str, archive: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Begin a run as a process of its own session, so that killing it kills nobody else."""
    path = out.with_suffix(".yaml")
    path.write_text(pipeline)
    words = [sys.executable, "-m", "medgen", "batch", "run", str(path), str(archive), "-o"]
    return subprocess.Popen([*words, str(out), "-q", *more], start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run that must succeed."""
    if process.wait() != 0:
        raise SystemExit(f"the run ended with {process.returncode}")


def contents(out: Path) -> dict[str, bytes]:
    """Every output that must not depend on when it was made."""
    return {
        str(path.relative_to(out)): timeless(path)
        for path in out.rglob("*")
        if path.is_file() and ".medgen" not in path.parts and not path.name.endswith(TIMED)
    }


def timeless(path: Path) -> bytes:
    """The file's bytes; of a DICOM object all but the moment at which it was made."""
    if path.suffix != ".dcm":
        return path.read_bytes()
    dataset = pydicom.dcmread(path)
    for item in [dataset, *dataset.get("ContributingEquipmentSequence", ())]:
        for keyword in MOMENTS & set(item.dir()):
            del item[keyword]
    return dataset.to_json().encode()


def done(out: Path) -> int:
    """Cases done so far."""
    with suppress(sqlite3.Error):
        uri = f"{(out / 'ledger.sqlite').as_uri()}?mode=ro"
        with sqlite3.connect(uri, uri=True, timeout=5) as db:
            return int(db.execute("SELECT count(*) FROM cases WHERE state='done'").fetchone()[0])
    return 0


def killed(root: Path, cases: int, kills: int) -> list[str]:
    """Run in peace, run with kills, compare."""
    from hostile_cohorts import cohort

    cohort(root / "archive", cases)
    calm, rough = root / "calm", root / "rough"
    for out in (calm, rough):  # one secret, so that the labels agree
        (out / ".medgen").mkdir(parents=True)
        (out / ".medgen" / "secret").write_bytes(bytes(32))
    finish(start(SMALL, root / "archive", calm))
    rng = random.Random(20261125)
    moments, redone = sorted(rng.sample(range(2, cases - 2), kills)), 0
    stamps: dict[Path, int] = {}
    for moment in moments:
        process = start(SMALL, root / "archive", rough)
        while process.poll() is None and done(rough) < moment:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(1)  # the workers notice and leave
        redone += sum(path.stat().st_mtime_ns != stamp for path, stamp in stamps.items())
        with sqlite3.connect(rough / "ledger.sqlite") as db:
            rows = db.execute("SELECT folder FROM cases WHERE state = 'done'").fetchall()
        stamps = {p: p.stat().st_mtime_ns for (f,) in rows for p in (rough / f).iterdir()}
    finish(start(SMALL, root / "archive", rough))
    redone += sum(path.stat().st_mtime_ns != stamp for path, stamp in stamps.items())
    first, second = contents(calm), contents(rough)
    differ = [n for n in first.keys() | second.keys() if first.get(n) != second.get(n)]
    return [
        f"| cases, killed after finished cases | {cases}, {', '.join(map(str, moments))} |",
        f"| cases done in the end | {done(rough)} |",
        f"| files compared byte by byte, differing | {len(first)}, {len(differ)} |",
        f"| files of finished cases written again | {redone} |",
    ]


def tiled() -> None:
    """``brain-mr`` in overlapping tiles: several times the computing, the same work around it."""
    from medgen.package import load_package

    target = Path(os.environ["MEDGEN_MODELS"]) / "brain-mr-tiled"
    shutil.copytree(load_package("brain-mr").folder, target)
    manifest = json.loads((target / "medgen.json").read_text())
    manifest["name"] = target.name
    manifest["inference"] |= {"tile": [64, 64], "overlap_fraction": 0.5}
    (target / "medgen.json").write_text(json.dumps(manifest))


def throughput(root: Path, cases: int, model: str, report: str) -> list[str]:
    """Rate of a cohort beside that of the bare network before and after it."""
    import torch

    from medgen.inference import predict_volume
    from medgen.io import read, write_nifti
    from medgen.package import load_package
    from medgen.phantoms import brain

    shape = (160, 192, 160)
    root.mkdir(parents=True)
    archive = root / "archive"
    archive.mkdir()
    for number in range(cases):
        head = brain(shape, spacing_mm=1.5, contrast="flair", seed=number % 4, lesion_radius_mm=8)
        write_nifti(
            archive / f"head-{number:03d}.nii.gz", head.image.voxels[0], head.image.geometry
        )
    package = load_package(model)
    network = package.method()
    prepared = [package.preparation.apply(read(archive / f"head-{n:03d}.nii.gz")) for n in range(4)]

    def bare() -> float:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        begin = time.perf_counter()
        for item in prepared:
            predict_volume(network, item.image, item.mask, package.inference)
        return len(prepared) / (time.perf_counter() - begin)

    bare()  # warm
    before = bare()
    begin = time.time()
    process = start(
        ORDINARY.replace("REPORT", report).replace("MODEL", model), archive, root / "out"
    )
    while process.poll() is None and not (early := done(root / "out")):
        time.sleep(0.05)
    first = time.time()
    finish(process)
    whole, steady = time.time() - begin, time.time() - first
    after = bare()
    rate, base = (cases - early) / steady, (before + after) / 2
    what = f"{model}, {'with' if report == 'true' else 'no'} report"
    rates = f"{60 * base:.2f} | {60 * rate:.2f} | {rate / base:.2f} | {60 * cases / whole:.2f}"
    return [f"| {what} | {rates} | {cases} |"]


def memory(root: Path, cases: int) -> list[str]:
    """Resident memory early and late in a long run."""
    from hostile_cohorts import nifti_cohort

    nifti_cohort(root / "archive", cases)
    process = start(SMALL, root / "archive", root / "out")
    samples: list[tuple[int, float, float]] = []  # cases done, MB of the run, MB of its workers

    def watch() -> None:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            while process.poll() is None:
                workers = [
                    p.memory_info().rss / 1e6
                    for p in parent.children(recursive=True)
                    if "spawn_main" in " ".join(p.cmdline())
                ]
                own = parent.memory_info().rss / 1e6
                samples.append((done(root / "out"), own, sum(workers)))
                time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.time()
    finish(process)
    seconds = time.time() - begin
    watcher.join()
    spans = [(0.1, 0.2), (0.45, 0.55), (0.88, 0.98)]
    means = [
        np.mean([s[1:] for s in samples if low * cases < s[0] <= high * cases], axis=0)
        for low, high in spans
    ]
    rows = []
    for place, what in enumerate(("the run itself, MB", "its workers together, MB")):
        early, middle, late = (float(mean[place]) for mean in means)
        rows.append(f"| {what} | {early:.0f} | {middle:.0f} | {late:.0f} | {late / early:.2f} |")
    return [*rows, "", f"{cases} cases in {seconds:.0f} s."]


def main() -> None:
    """Measure the chosen parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["killed", "throughput", "memory"], action="append")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full size, to try")
    arguments = parser.parse_args()
    from tiny_packages import save_intensity

    parts: dict[str, Callable[[Path], list[str]]] = {
        "killed": lambda root: [
            "| killed at random | |", "|---|---|", *killed(root, int(200 * arguments.scale), 5)
        ],
        "throughput": lambda root: [
            "| model | bare network, cases a minute | cohort | ratio | with start-up | cases |",
            "|---|---|---|---|---|---|",
            *throughput(root / "a", int(16 * arguments.scale), "brain-mr-tiled", "false"),
            *throughput(root / "b", int(24 * arguments.scale), "brain-mr", "false"),
            *throughput(root / "c", int(24 * arguments.scale), "brain-mr", "true"),
        ],
        "memory": lambda root: [
            "| resident memory after | 10-20 % | 45-55 % | 88-98 % of the cases | ratio |",
            "|---|---|---|---|---|",
            *memory(root, int(1000 * arguments.scale)),
        ],
    }  # fmt: skip
    lines = ["# The cohort engine", "", "`python benchmarks/cohort.py`", ""]
    with tempfile.TemporaryDirectory() as folder:
        save_intensity(Path(folder) / "models" / "tiny-baseline")
        os.environ["MEDGEN_MODELS"] = str(Path(folder) / "models")
        tiled()
        for name in arguments.part or parts:
            lines += [*parts[name](Path(folder) / name), ""]
            print("\n".join(lines[-8:]), flush=True)
    text = "\n".join(lines)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
