"""What every test shares: repeatable property tests, few threads, and where real scans lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

# One thread is faster than many for tiny arrays, and keeps parallel runs from fighting.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "2")
os.environ.setdefault("MPLBACKEND", "agg")

# The same examples on every machine and every run: a failure can always be repeated.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The folder that holds pyproject.toml."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real scans (CONTRIBUTING.md, "Real data"); the test is skipped without it."""
    named = os.environ.get("MEDGEN_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not (folder / "brain").is_dir():
        pytest.skip(f"no real scans at {folder}; set MEDGEN_DATA to their folder")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below tests/realdata carries the realdata marker."""
    for item in items:
        if (REPOSITORY / "tests" / "realdata") in item.path.parents:
            item.add_marker(pytest.mark.realdata)
