"""``medgen info``: what is installed, which devices there are, where models are looked for."""

from __future__ import annotations

from medgen.cli import options
from medgen.cli.console import configure, print_json, stdout


def info(json: options.Json = False, debug: options.Debug = False) -> None:
    """Show versions, devices, memory and models. Include this in a bug report."""
    configure(debug=debug)
    import os
    import platform

    from medgen.devices import visible_gpus
    from medgen.package import list_packages, search_folders
    from medgen.run_record import versions
    from medgen.tasks.limits import available_memory_gb

    gpus = visible_gpus()
    found = {
        "versions": versions(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "free_memory_gb": round(available_memory_gb(), 1),
        "gpus": gpus,
        "models": [name for name, _, _ in list_packages()],
        "model_folders": [str(folder) for folder in search_folders()],
    }
    if json:
        print_json(found)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    for name, version in versions().items():
        table.add_row(name, version)
    table.add_row("platform", str(found["platform"]))
    table.add_row("CPUs", str(found["cpus"]))
    table.add_row("free memory", f"{found['free_memory_gb']} GB")
    table.add_row("NVIDIA GPUs", "; ".join(gpus) or "none found (no driver)")
    table.add_row("models", escape(", ".join(name for name, _, _ in list_packages())) or "none")
    table.add_row("model folders", escape("\n".join(str(folder) for folder in search_folders())))
    stdout().print(table)
