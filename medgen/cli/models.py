"""``medgen models list|show|verify|pack|blend``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medgen.cli import options
from medgen.cli.console import configure, print_json, progress_bar, show_error, stdout
from medgen.errors import PackageError

if TYPE_CHECKING:
    from medgen.package import ModelPackage

models = typer.Typer(
    help="List, show, verify and make model packages.",
    no_args_is_help=True,
    epilog="Set **MEDGEN_MODELS** to a folder of packages to add your own.",
)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="Name or folder of a model package.")]


@models.command("list")
def list_models(json: options.Json = False, debug: options.Debug = False) -> None:
    """List the models that can be used by name."""
    configure(debug=debug)
    from medgen.package import list_packages

    packages = list_packages()
    if json:
        print_json(
            [
                {"name": name, "folder": str(folder), "error": found.message}
                if isinstance(found, PackageError)
                else {"name": name, "folder": str(folder), **found.model_dump(mode="json")}
                for name, folder, found in packages
            ]
        )
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "version", "task", "method", "what it is for")
    for name, _, found in packages:
        if isinstance(found, PackageError):
            table.add_row(escape(name), "", "", "", f"[red]unusable: {escape(found.message)}[/]")
        else:
            cells = (name, found.version, found.task, found.method, found.summary)
            table.add_row(*map(escape, cells))
    stdout().print(table)


@models.command()
def show(name: Name, json: options.Json = False, debug: options.Debug = False) -> None:
    """Show everything a model says about itself."""
    configure(debug=debug)
    from medgen.package import CARD, load_package

    package = load_package(name)
    manifest = package.manifest
    if json:
        values = manifest.model_dump(mode="json")
        print_json({"folder": str(package.folder), "package_sha256": package.sha256, **values})
        return
    from rich.markdown import Markdown
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    rows = {
        "name": f"{manifest.name} {manifest.version}",
        "folder": package.folder,
        "SHA-256": package.sha256,
        "task": manifest.task,
        "method": f"{manifest.method} {_settings(manifest.config)}",
        **_of_task(package),
    }
    for key, value in rows.items():
        table.add_row(key, escape(str(value)))
    console = stdout()
    console.print(table)
    if CARD in manifest.sha256:
        console.print(Markdown((package.folder / CARD).read_text(encoding="utf-8")))


def _of_task(package: ModelPackage) -> dict[str, str]:
    """What only models of this task say."""
    manifest = package.manifest
    takes = {"takes": _settings(manifest.contract.model_dump(mode="json"))}
    if manifest.task == "features":
        return takes
    if manifest.synthesis is not None:
        made = manifest.synthesis
        return {
            "conditions": ", ".join(made.condition_names) or "none",
            "labels": ", ".join(made.label_names) or "none",
            "makes": _settings(
                made.model_dump(
                    mode="json", exclude={"condition_names", "label_names", "extractor"}
                )
            ),
            "measured by": f"{made.extractor.name} ({made.extractor.sha256[:12]}…)"
            if made.extractor
            else "nothing",
        }
    if manifest.restoration is not None:
        restores = manifest.restoration.model_dump(mode="json", exclude={"spread"})
        spread = manifest.restoration.spread
        return {
            "preparation": _settings(manifest.preparation),
            "inference": _settings(manifest.inference),
            **takes,
            "restores": _settings({key: value for key, value in restores.items() if value}),
            "uncertainty": _settings(spread.model_dump(mode="json"))
            if spread
            else "not calibrated",
        }
    rule = package.calibration.threshold_rule if package.calibration else "not calibrated"
    parent = manifest.parent
    return {
        "preparation": _settings(manifest.preparation),
        "inference": _settings(manifest.inference),
        "scoring": _settings(manifest.scoring),
        **takes,
        "threshold": rule,
        **({"parent": f"{parent.name} {parent.version} ({parent.sha256})"} if parent else {}),
    }


@models.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: all by name.")
    ] = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check every hash and run each model's golden case again."""
    configure(quiet=True, debug=debug)
    from rich.markup import escape

    from medgen.package import load_package, package_folders, verify_package

    results: list[dict[str, object]] = []
    for name in names or sorted(package_folders()):
        try:
            difference = verify_package(load_package(name))
        except PackageError as error:
            results.append({"name": name, "ok": False, "error": error.message})
            show_error(error.message, error.hint)
        else:
            results.append({"name": name, "ok": True, "largest_difference": difference})
            if not json:
                text = f"{name}: files unchanged, golden case within {difference:.1g}"
                stdout().print(f"[green]ok[/]  {escape(text)}")
    if json:
        print_json(results)
    if not all(result["ok"] for result in results):
        raise typer.Exit(2)


@models.command()
def pack(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `medgen train` wrote.")],
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="YAML that describes the package.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new package.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Where the training data lie now, if not where the configuration says: "
            "data.folder=FOLDER.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    """Make a model package of a finished training run.

    A detector is calibrated on healthy scans; the training images of a generator are measured, so
    that copies can be recognised.
    """
    configure(debug=debug)
    from rich.markup import escape

    from medgen.tasks.pack import pack as make_package
    from medgen.tasks.pack import read_recipe

    wanted = read_recipe(recipe)
    with progress_bar("packing") as show:
        package = make_package(
            run, wanted, output, changes=changes or (), overwrite=overwrite, progress=show
        )
    text = f"{package.manifest.name} {package.manifest.version}: {package.folder}"
    stdout().print(escape(text), soft_wrap=True)
    if package.calibration:
        stdout().print(escape(package.calibration.threshold_rule))


@models.command()
def blend(
    first: Annotated[str, typer.Argument(metavar="A", help="Model at weight 0.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Model at weight 1.")],
    weight: Annotated[float, typer.Option("--weight", help="Share of B, 0 to 1.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new package.")],
    overwrite: options.Overwrite = False,
    debug: options.Debug = False,
) -> None:
    """Make a model between two others, of which one was trained on from the other.

    Between a super-resolution model trained for small errors and the same one trained on for
    sharpness, the weight chooses how sharp.
    """
    configure(debug=debug)
    from rich.markup import escape

    from medgen.package import load_package
    from medgen.tasks.blend import blend as make_blend

    package = make_blend(
        load_package(first), load_package(second), weight, output, overwrite=overwrite
    )
    text = f"{package.manifest.name} {package.manifest.version}: {package.folder}"
    stdout().print(escape(text), soft_wrap=True)


def _settings(values: dict[str, object]) -> str:
    """Settings in one line, as in YAML."""
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "all defaults"
