"""Write docs/reference/command-line.md from the commands themselves: `make docs`.

The reference can then not say anything that the program does not do; a test compares the two.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from medgen.cli import app

PAGE = Path(__file__).parent / "reference" / "command-line.md"
HEAD = """# Command line

<!-- Written by docs/make_reference.py from the program itself; change the help texts there. -->

Results go to stdout; progress, notes and errors to stderr. No progress bars are drawn when stderr
is not a terminal, and no colours when `NO_COLOR` is set.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | bad usage or bad input; nothing was written |
| 130 | interrupted |

| environment variable | meaning |
|---|---|
| `MEDGEN_MODELS` | folders with more models, separated as in `PATH` |
| `CUDA_VISIBLE_DEVICES` | which GPUs may be used |
| `NO_COLOR` | no colours |
"""


def plain(text: str | None) -> str:
    """Help text without the markup for terminals, on one line."""
    unmarked = re.sub(r"\\?\[/?[a-z ]*\]", "", inspect.cleandoc(text or ""))
    return " ".join(unmarked.replace("|", "\\|").split())


def section(name: str, command: Any) -> Iterator[str]:
    """A command's heading, what it does, and a table of what it takes."""
    yield f"\n## medgen {name}\n"
    yield plain(command.help) + "\n"
    rows = [row(parameter) for parameter in command.params if parameter.name != "help"]
    if rows:
        yield "| argument | meaning | default |\n|---|---|---|"
        yield from rows


def row(parameter: Any) -> str:
    """One line of the table."""
    if parameter.param_type_name == "argument":
        written = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        flags = [*parameter.opts, *parameter.secondary_opts]
        written = ", ".join(f"`{flag}`" for flag in sorted(flags, key=len, reverse=True))
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or callable(default):
        shown = ""
    else:
        shown = f"`{default}`" if default is not True else f"`{parameter.opts[0]}`"
    return f"| {written} | {plain(getattr(parameter, 'help', ''))} | {shown} |"


def reference() -> str:
    """The whole page."""
    lines = [HEAD]
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        for part, one in (inner or {"": command}).items():
            lines += section(f"{name} {part}".strip(), one)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
