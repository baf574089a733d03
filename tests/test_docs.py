"""What the documentation says is checked where a machine can: links, code, commands."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import typer.main

REPOSITORY = Path(__file__).resolve().parents[1]


def pages() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.split()
    names = listed or [str(p) for p in REPOSITORY.glob("**/*.md") if ".venv" not in p.parts]
    return [path for name in names if (path := REPOSITORY / name).is_file()]


def by_name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", pages(), ids=by_name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|mailto:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", pages(), ids=by_name)
def test_commands_exist(page):
    """Every `medgen VERB` in a code block or in backticks is a verb of the command line."""
    from medgen.cli import app

    verbs = set(typer.main.get_command(app).commands)
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|sh|console)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(medgen [^`]+)`", text)
    for line in lines:
        if found := re.match(r"\$?\s*medgen ([a-z][a-z-]*)", line):
            assert found[1] in verbs, line


def test_the_page_on_coordinates_computes_what_it_says():
    failures, tried = doctest.testfile(
        str(REPOSITORY / "docs/concepts/coordinates.md"), module_relative=False
    )
    assert tried > 5 and failures == 0


def test_the_reference_is_current():
    spec = importlib.util.spec_from_file_location("ref", REPOSITORY / "docs/make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, content in module.FILES.items():
        page = (REPOSITORY / "docs/reference" / name).read_text(encoding="utf-8")
        assert page == content(), f"run `make docs`: {name}"
