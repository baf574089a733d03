"""Where the command line prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

QUIET, NORMAL, VERBOSE = -1, 0, 1


class Settings:
    """How much this run says, set once from the command's options, and where."""

    level = NORMAL
    debug = False
    under_a_bar: Console | None = None


def configure(*, quiet: bool = False, verbose: bool = False, debug: bool = False) -> None:
    """Set how much to say. ``debug`` implies ``verbose``."""
    Settings.level = QUIET if quiet else VERBOSE if verbose or debug else NORMAL
    Settings.debug = debug
    logger = logging.getLogger("medgen")
    logger.handlers = [_Handler()]
    logger.setLevel(
        {QUIET: logging.ERROR, NORMAL: logging.INFO, VERBOSE: logging.DEBUG}[Settings.level]
    )


class _Handler(logging.Handler):
    """Shows what medgen logs as dim lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.markup import escape

        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        stderr().print(f"[{style}]{escape(record.getMessage())}[/]", soft_wrap=True)


def plain(text: str, keep: str = "") -> str:
    """Text from a file without characters that command a terminal."""
    return "".join(c if c.isprintable() or c in keep else "\N{REPLACEMENT CHARACTER}" for c in text)


def stdout() -> Console:
    """For results."""
    return _console_class()(highlight=False)


def stderr() -> Console:
    """For progress, notes and errors; the bar's console while one is shown, which gives way."""
    return Settings.under_a_bar or _console_class()(stderr=True, highlight=False)


@cache
def _console_class() -> type[Console]:
    """A console that no header value and no file name can command (rich lets escapes pass)."""
    from rich.console import Console

    class Plain(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            super().print(
                *(plain(o, "\n\t") if isinstance(o, str) else o for o in objects), **options
            )

    return Plain


def say(message: RenderableType, *, level: int = NORMAL) -> None:
    """Print a message on stderr unless this run is quieter than ``level``."""
    if Settings.level >= level:
        stderr().print(message)


def print_json(values: Any) -> None:
    """Print a result for another program: plain JSON on stdout, no colours, no wrapping."""
    sys.stdout.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def show_error(message: str, hint: str | None = None) -> None:
    """Print an error and what to do next on stderr."""
    from rich.markup import escape

    console = stderr()
    console.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    if hint:
        console.print(f"[dim]{escape(hint)}[/]", soft_wrap=True)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr that is fed with (done, total); None when nobody is watching."""
    if Settings.level < NORMAL or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as progress:
        task = progress.add_task(description, total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        Settings.under_a_bar = progress.console
        try:
            yield advance
        finally:
            Settings.under_a_bar = None
