"""What a command leaves behind in ``run.json``: enough to repeat it, nothing about a patient."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# The libraries whose version can change a number.
LIBRARIES = (
    "medgen", "torch", "monai", "numpy", "scipy", "scikit-image", "SimpleITK",
    "nibabel", "pydicom", "highdicom", "distributed", "safetensors", "lightning-fabric",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Installed versions of Python, medgen and what it computes with, without importing any."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes)."""
    try:
        import resource
    except ImportError:  # Windows has no such record
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def hash_name(name: str) -> str:
    """SHA-256 of the name of a subject, by which records know people without naming them."""
    return hashlib.sha256(name.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's contents as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, number of files and SHA-256 of a file or folder.

    A folder's hash is that of the sorted hashes of its files, so it depends neither on their
    names (which may name a patient) nor on their order.
    """
    if path.is_file():
        return {"name": path.name, "files": 1, "sha256": hash_file(path)}
    hashes = sorted(hash_file(file) for file in path.rglob("*") if file.is_file())
    joined = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"name": path.name, "files": len(hashes), "sha256": joined}


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds spent inside the block to ``timings[name]``."""
    start = time.perf_counter()
    try:
        yield
    finally:
        timings[name] = timings.get(name, 0.0) + time.perf_counter() - start


def run_record(
    command: str,
    *,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Path],
    timings: Mapping[str, float],
    **details: Any,
) -> dict[str, Any]:
    """The contents of ``run.json``.

    Args:
        command: The verb and its options; paths are left out because they may name a patient.
        inputs: Fingerprints of what was read.
        outputs: Files already written; their names and hashes are recorded.
        timings: Seconds per step.
        **details: Whatever else the command must own up to: model, device, fallbacks, notes.
    """
    return {
        "command": command,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "inputs": list(inputs),
        "outputs": [fingerprint(path) for path in outputs],
        "timings_s": {name: round(seconds, 3) for name, seconds in timings.items()},
        "peak_memory_gb": round(peak_memory_gb(), 3),
        **details,
    }
