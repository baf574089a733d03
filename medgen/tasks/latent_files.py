"""``medgen latent``: scatter of codes, grid of decoded images, interpolation; as files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.devices import resolve_device
from medgen.run_record import fingerprint, run_record, timed
from medgen.tasks.detect_files import write_json
from medgen.tasks.latent import LatentSpace, between, ends, grid_places, latent_space
from medgen.tasks.output_folder import output_folder, refuse_inside
from medgen.tasks.trained import open_trained

CODES, SCATTER, GRID, WALK, PAGE, RUN = (
    "codes.tsv", "scatter.png", "grid.png", "interpolation.png", "latent.html", "run.json",
)  # fmt: skip
NAMES = (CODES, SCATTER, GRID, WALK, PAGE, RUN)


def latent_files(
    model: str,
    folder: Path,
    output: Path,
    config: Mapping[str, Any],
    *,
    steps: int = 12,
    images_between: tuple[str, str] | None = None,
    walk_steps: int = 9,
    device: str = "auto",
    overwrite: bool = False,
    command: str = "latent",
) -> dict[str, Any]:
    """Show a network's latent space and write :data:`NAMES` into ``output``.

    Args:
        model: Folder of a training run, or a package.
        folder: Of images, one subfolder per label or without labels.
        output: Folder of the results. A network that cannot decode gets no grid and no
            interpolation.
        config: Keys of :class:`~medgen.grouped_files.SetConfig`.
        steps: Images along each side of the grid.
        images_between: Files to interpolate between; None: typical ones are chosen.
        walk_steps: Images of the interpolation.
        device: Where to compute.
        overwrite: Replace earlier results.
        command: For the record.

    Returns:
        What was found, as JSON values: number of images and of latent variables, active ones, the
        part of the variance that is shown, labels, and the interpolation's ends.

    Raises:
        InputError: Bad input, or the folder holds results already.
    """
    refuse_inside(output, folder)
    device, timings = resolve_device(device), dict[str, float]()
    with output_folder(output, NAMES, overwrite=overwrite) as draft:
        with timed(timings, "code images"):
            space = latent_space(open_trained(model), folder, config, device)
        facts = _facts(space)
        (draft / CODES).write_text(_codes(space), encoding="utf-8")
        with timed(timings, "decode and draw"):
            _draw(space, facts, draft, steps, images_between, walk_steps)
        record = run_record(
            command, inputs=[fingerprint(folder)],
            outputs=[draft / name for name in NAMES if (draft / name).exists()],
            timings=timings, device=device,
            model={"name": space.trained.name, "sha256": space.trained.sha256},
        )  # fmt: skip
        write_json(draft / RUN, record)
    return facts


def _facts(space: LatentSpace) -> dict[str, Any]:
    explained, labels = space.plane.explained, space.images.labels
    return {
        "model": space.trained.name,
        "method": space.trained.method_name,
        "sha256": space.trained.sha256,
        "images": len(space.codes),
        "labels": {name: int((labels == n).sum()) for n, name in enumerate(space.names)},
        "latent_variables": space.codes.shape[1],
        "active": space.active,
        "variance_shown": None if explained is None else list(explained),
        "decodes": space.decodes,
    }  # fmt: skip


def _codes(space: LatentSpace) -> str:
    """File, label, place in the plane and code of every image, tabs between them."""
    size = space.codes.shape[1]
    lines = ["\t".join(["file", "label", "x", "y", *(f"z{n}" for n in range(size))])]
    for item, place, code in zip(space.images.items, space.places, space.codes, strict=True):
        label = space.names[item.condition] if space.names else ""
        numbers = (f"{value:.6g}" for value in (*place, *code))
        lines.append("\t".join([item.path.name, label, *numbers]))
    return "\n".join(lines) + "\n"


def _draw(
    space: LatentSpace,
    facts: dict[str, Any],
    draft: Path,
    steps: int,
    wanted: tuple[str, str] | None,
    walk_steps: int,
) -> None:
    from medgen.report.latent import draw_grid, draw_scatter, draw_walk, write_page

    labels = space.images.labels if space.names else None
    grid = grid_places(space.places, steps)
    extent = (grid.min(0), grid.max(0)) if space.decodes else None
    draw_scatter(space.places, labels, space.names, facts, extent, draft / SCATTER)
    if space.decodes:
        decoded = space.decode(space.plane.lift(grid))
        draw_grid(_pictures(space, decoded), facts, draft / GRID)
        start, end = ends(space, wanted)
        facts["between"] = [space.images.items[n].path.name for n in (start, end)]
        walk = _pictures(space, space.decode(between(space, start, end, walk_steps)))
        real = _pictures(space, space.images.images[[start, end]])
        draw_walk(walk, (real[0], real[1]), facts, draft / WALK)
    names = [item.path.name for item in space.images.items]
    write_page(space.places, labels, space.names, names, facts, extent, draft, draft / PAGE)


def _pictures(space: LatentSpace, images: Iterable[Any]) -> list[NDArray[np.uint8]]:
    return [space.images.picture(image) for image in images]
