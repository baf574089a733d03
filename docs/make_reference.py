"""Write the reference from the program itself: `make docs`.

The pages on the command line and on pipelines can then not say anything that the program does not
do; a test compares them. The JSON schema of pipelines is for editors that check while one types.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from pydantic import BaseModel

from medgen.batch.pipeline import (
    Chain,
    Convert,
    Deidentify,
    Denoise,
    Detect,
    Inpaint,
    Naming,
    Pipeline,
    Selection,
    SuperResolve,
    Translate,
)
from medgen.batch.pipeline import json_schema as pipeline_schema
from medgen.batch.rules import FIELDS, Rule
from medgen.cli import app
from medgen.io.deidentify import Profile

FOLDER = Path(__file__).parent / "reference"
HEAD = """# Command line

<!-- Written by docs/make_reference.py from the program itself; change the help texts there. -->

Results go to stdout; progress, notes and errors to stderr. No progress bars are drawn when stderr
is not a terminal, and no colours when `NO_COLOR` is set.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | bad usage or bad input; nothing was written |
| 3 | a batch finished, and some of its cases failed |
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


PIPELINES_HEAD = """# Pipelines

<!-- Written by docs/make_reference.py from the program itself; change the descriptions there. -->

A pipeline is a YAML file for `medgen batch`: which images of an archive, what to do with each, what
to write. Those that come with medgen lie in `pipelines/`; copy one and change it. Unknown keys are
refused. For completion and checks while you type, begin the file with

```yaml
# yaml-language-server: $schema=pipeline.schema.json
```

and the path or address of [pipeline.schema.json](pipeline.schema.json), which
`medgen batch schema` prints too.
"""
PARTS = (
    ("The file", Pipeline),
    ("`images`", Selection),
    ("A rule", Rule),
    ("`task: {name: detect-anomalies}`", Detect),
    ("`task: {name: inpaint}`", Inpaint),
    ("`task: {name: super-resolve}`", SuperResolve),
    ("`task: {name: denoise}`", Denoise),
    ("`task: {name: translate}`", Translate),
    ("`task: {name: chain}`", Chain),
    ("`task: {name: deidentify}`", Deidentify),
    ("`profile`", Profile),
    ("`task: {name: dicom-to-bids}`", Convert),
    ("An entry of `naming`", Naming),
)


def keys(model: type[BaseModel]) -> Iterator[str]:
    """A table of what a part of a pipeline may say."""
    yield "| key | meaning | default |\n|---|---|---|"
    for name, field in model.model_fields.items():
        if name == "name" and not field.description:
            continue  # the tag that stands in the heading
        default = field.get_default(call_default_factory=True)
        if field.is_required():
            shown = "required"
        elif default in (None, (), "") or isinstance(default, BaseModel):
            shown = ""
        elif isinstance(default, tuple):
            shown = f"`[{', '.join(map(str, default))}]`"
        else:
            shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
        yield f"| `{name}` | {plain(field.description)} | {shown} |"


def pipelines() -> str:
    """The page on pipeline files."""
    lines = [PIPELINES_HEAD]
    for heading, model in PARTS:
        lines += [f"\n## {heading}\n", *keys(model)]
    lines += ["\n## Fields that rules may ask for\n", "| field | meaning |\n|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in FIELDS.items()]
    return "\n".join(lines) + "\n"


def schema() -> str:
    """The JSON schema of pipeline files."""
    return json.dumps(pipeline_schema()) + "\n"


FILES = {
    "command-line.md": reference,
    "pipelines.md": pipelines,
    "pipeline.schema.json": schema,
}

if __name__ == "__main__":
    for name, content in FILES.items():
        (FOLDER / name).write_text(content(), encoding="utf-8")
