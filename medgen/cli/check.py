"""``medgen check``: what a file or folder is, and which models would take it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, stdout


def check(
    sources: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Files, folders or zips to look at.")
    ],
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Say what files are and which models would take them, without reading their pixels."""
    configure(debug=debug)
    from medgen.tasks.check import check_source

    results = [check_source(source) for source in sources]
    if json:
        print_json(results)
    else:
        for result in results:
            _print(result)
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)


def _print(result: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Table

    console = stdout()
    console.print(f"[b]{escape(result['source'])}[/]", soft_wrap=True)
    if "error" in result:
        console.print(f"  [red]{escape(result['error'])}[/]", soft_wrap=True)
        return
    for image in result["images"]:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
        for key, value in image.items():
            if key not in ("models", "problems", "path") and value is not None:
                table.add_row(f"[dim]{key.replace('_', ' ')}[/]", escape(_text(value)))
        for problem in image["problems"]:
            table.add_row("[yellow]note[/]", escape(problem))
        for model in image["models"]:
            verdict = (
                "[green]takes it[/]" if model["takes"] else f"[red]no:[/] {escape(model['why'])}"
            )
            table.add_row(f"model [b]{escape(model['name'])}[/]", verdict)
        console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " x ".join(_text(item) for item in value)
    return str(value)
