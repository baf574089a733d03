"""``medgen check``: what a file, folder or archive holds, and which models would take it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, stderr, stdout


def check(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Files, folders, zips or archives to look at."),
    ],
    json: options.Json = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            metavar="",
            help="Show UIDs, frames and every reason.",
            rich_help_panel=options.COMMON,
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Say what files are and which models would take them, without reading their pixels.

    For a folder or an archive: a table of its studies and series, what was set aside and why.
    """  # fmt: skip
    configure(debug=debug)
    from medgen.cli.check_view import show
    from medgen.tasks.check import check_source

    results = []
    for source in sources:
        with _counting() as count:
            results.append(check_source(source, progress=count))
        if not json:
            show(results[-1], stdout(), verbose=verbose)
    if json:
        print_json(results)
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)


@contextmanager
def _counting() -> Iterator[Callable[[int], None] | None]:
    """Show how many files were looked at while somebody watches."""
    if not sys.stderr.isatty():
        yield None
        return
    with stderr().status("looking at files") as status:
        yield lambda files: status.update(f"looking at files: {files:,}")
