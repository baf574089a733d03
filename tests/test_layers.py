"""The rooms of the house: who may import whom, and what importing may cost."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import medgen

PACKAGE = Path(__file__).resolve().parents[1] / "medgen"

# Each room imports only rooms on earlier lines, and the rooms named as its neighbours below.
ROWS = (
    ("errors", "config"),
    ("volume", "devices", "run_record"),
    ("io", "resampling", "grouped_files"),
    (
        *("preparation", "brain", "corruption", "phantoms", "label_maps", "anatomy"),
        "anatomy_settings",
        *("image_sets", "annotated_sets", "annotated_brain", "mixed_sets", "toy"),
        *("restoration_sets", "restoration_settings", "real_scans", "domain_sets", "classical"),
        *("batch_pool", "holed_slabs", "normal_sets"),
    ),
    ("networks", "losses", "augmentation", "label_deformation"),
    ("methods",),
    ("training", "inference", "scoring", "metrics"),
    ("manifest", "package", "features"),
    ("report",),  # draws whatever has the attributes of a detection; tasks call it when they save
    ("tasks",),
    ("batch",),
    ("cli",),
)
ROW = {room: number for number, row in enumerate(ROWS) for room in row}
# Within one row, and only in this direction: (who, whom).
NEIGHBOURS = {
    ("preparation", "brain"),
    ("anatomy", "anatomy_settings"),
    ("anatomy", "corruption"),
    ("classical", "corruption"),  # one way to apply a matrix along an axis
    ("anatomy", "label_maps"),
    ("anatomy", "phantoms"),
    ("annotated_sets", "image_sets"),
    ("annotated_brain", "anatomy"),
    ("annotated_brain", "anatomy_settings"),
    ("annotated_brain", "annotated_sets"),
    ("annotated_brain", "corruption"),
    ("annotated_brain", "image_sets"),
    ("annotated_brain", "label_maps"),
    ("annotated_brain", "phantoms"),
    ("mixed_sets", "image_sets"),
    ("normal_sets", "anatomy"),
    ("normal_sets", "corruption"),
    ("normal_sets", "image_sets"),
    ("normal_sets", "preparation"),
    ("restoration_sets", "anatomy"),
    ("holed_slabs", "classical"),
    ("holed_slabs", "corruption"),
    ("restoration_sets", "batch_pool"),
    ("restoration_sets", "corruption"),
    ("restoration_sets", "holed_slabs"),
    ("restoration_sets", "label_maps"),
    ("restoration_sets", "phantoms"),
    ("restoration_sets", "real_scans"),
    ("restoration_sets", "restoration_settings"),
    ("restoration_settings", "corruption"),
    ("real_scans", "image_sets"),
    ("domain_sets", "image_sets"),
    ("package", "manifest"),
    ("features", "package"),  # the shipped extractor is a package
    ("features", "manifest"),
    ("metrics", "scoring"),  # both count findings; one definition
}
# Nearer than the row says: a method must stay usable on plain tensors.
DATA = {"io", "preparation", "brain", "corruption", "phantoms", "label_maps"}
DATA |= {"anatomy", "anatomy_settings"}
DATA |= {"image_sets", "annotated_sets", "annotated_brain", "mixed_sets", "toy"}
DATA |= {"restoration_sets", "restoration_settings", "real_scans", "domain_sets", "classical"}
DATA |= {"batch_pool", "holed_slabs", "normal_sets"}
FORBIDDEN = {
    "methods": DATA - {"corruption"},  # works on plain tensors too
    "losses": DATA,
    "networks": DATA,
    "augmentation": DATA,
    "label_deformation": DATA,
    "training": {"io"},
    "scoring": {"io"},
    "metrics": {"io"},
}
# The API and the module entry point tie rooms together; `data` and `models` hold no code.
OUTSIDE = {"__init__", "__main__"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    """Dotted module name below medgen, `io.nifti` or `io` for a package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported(path: Path) -> Iterator[str]:
    """Every medgen module that a file imports, lazily or not, without the leading `medgen.`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found = [module] if module != "medgen" else [f"medgen.{a.name}" for a in node.names]
            if module.startswith("medgen."):
                found += [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (item.removeprefix("medgen.") for item in found if item.startswith("medgen."))


@pytest.mark.parametrize("path", modules(), ids=name)
def test_imports_go_downwards(path: Path) -> None:
    room = name(path).split(".")[0]
    if room in OUTSIDE:
        return
    assert room in ROW, f"medgen/{room} has no row in the plan of the house"
    for module in imported(path):
        other = module.split(".")[0]
        if other == room or other not in ROW:
            continue
        assert ROW[other] < ROW[room] or (room, other) in NEIGHBOURS, f"{room} imports {other}"
        assert other not in FORBIDDEN.get(room, set()), f"{room} imports {other}"


def test_methods_do_not_import_each_other() -> None:
    folder = PACKAGE / "methods"
    names = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    shared = {stem for stem in names if stem.startswith("_")}  # what several methods stand on
    for path in folder.glob("*.py"):
        others = {m.split(".")[1] for m in imported(path) if m.startswith("methods.")}
        clash = (others & names) - shared - {path.stem}
        assert not clash, f"methods/{path.name} imports {clash}"


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = (
    "torch", "monai", "SimpleITK", "matplotlib", "highdicom", "lightning", "lightning_fabric",
    "dask", "distributed",
)  # fmt: skip
LIGHT = (
    "medgen", "medgen.cli", "medgen.errors", "medgen.config", "medgen.volume", "medgen.io",
    "medgen.preparation", "medgen.scoring", "medgen.metrics", "medgen.package", "medgen.tasks",
    "medgen.report", "medgen.methods", "medgen.phantoms", "medgen.batch.run", "medgen.batch.verbs",
    "medgen.tasks.deidentify", "medgen.tasks.check", "medgen.cli.batch", "medgen.cli.evaluate",
    "medgen.metrics.synthesis", "medgen.tasks.evaluate_synthesis",
    "medgen.tasks.evaluate_paired", "medgen.report.comparison", "medgen.cli.calibrate",
    "medgen.tasks.calibrate", "medgen.tasks.drift", "medgen.tasks.detect_compare",
)  # fmt: skip


def test_importing_is_cheap() -> None:
    lines = ["import sys", "from importlib import import_module"]
    for module in LIGHT:  # one after the other, so that the first culprit is named
        lines.append(f"import_module({module!r})")
        lines.append(f"print({module!r}, *[m for m in {HEAVY} if m in sys.modules])")
    for line in run("\n".join(lines)).splitlines():
        module, *loaded = line.split()
        assert not loaded, f"import {module} also loads {loaded}"


def test_public_names_resolve() -> None:
    for public in medgen.__all__:
        assert getattr(medgen, public) is not None, public


def test_no_pickle_no_eval_no_shell() -> None:
    refused = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
                assert not refused & {n.split(".")[0] for n in names}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load"}, f"{path}: {called}"
                assert not any(k.arg == "shell" for k in node.keywords), f"{path}: shell"
