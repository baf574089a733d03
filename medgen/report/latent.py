"""A latent space for people: a scatter of codes, a grid of decoded images, a walk between two."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medgen.report.contact_sheet import Tile, contact_sheet
from medgen.report.pages import render
from medgen.report.picture import resize
from medgen.report.words import number

Facts = Mapping[str, Any]
Places = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

# The safe colours of Okabe and Ito (2008); again from the start if there are more labels.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
GRID_TILE, WALK_TILE = 64, 128  # pixels
PLOT, FRAME = 640, 32  # pixels of the page's scatter and of its margin


def axis_names(facts: Facts) -> tuple[str, str]:
    """What the two axes of the plane are."""
    shown = facts["variance_shown"]
    if shown is None:
        return "first latent number", "second latent number"
    return tuple(
        f"principal component {n} ({100 * part:.0f} % of the variance)"
        for n, part in enumerate(shown, start=1)
    )  # type: ignore[return-value]


def sentences(facts: Facts) -> list[str]:
    """What was looked at, and how much of it the plane shows."""
    labels = ", ".join(f"{name} {count}" for name, count in facts["labels"].items())
    lines = [
        f"{facts['images']} images{f' ({labels})' if labels else ''}, coded by {facts['model']} "
        f"({facts['method']}, SHA-256 {facts['sha256']}) as {facts['latent_variables']} numbers "
        "each."
    ]
    shown = facts["variance_shown"]
    if shown is None:
        lines.append("The plane is the latent space itself.")
    else:
        lines.append(
            f"The plane is that of the codes' two largest principal components and holds "
            f"{100 * sum(shown):.0f} % of their variance: images that are near in it may be far "
            "apart in the space."
        )
    if facts["active"] is not None:
        lines.append(
            f"{facts['active']} of {facts['latent_variables']} latent variables are active: their "
            "mean varies by more than 0.01 over the images."
        )
    if not facts["decodes"]:
        lines.append("This network has no decoder, so there is no grid and no interpolation.")
    return lines


def draw_scatter(
    places: Places,
    labels: NDArray[np.integer[Any]] | None,
    names: Sequence[str],
    facts: Facts,
    extent: tuple[Places, Places] | None,
    path: Path,
) -> None:
    """Write the scatter as PNG.

    Args:
        places: Of the images in the plane ``(N, 2)``.
        labels: Number of the label of each, or None.
        names: Of the labels.
        facts: As :func:`sentences` takes them.
        extent: Lowest and highest corner of the grid, which is drawn as a frame.
        path: An existing file is replaced.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(7, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    if extent is not None:
        (left, low), (right, high) = extent
        frame = Rectangle((left, low), right - left, high - low, fill=False, edgecolor="0.6",
                          linestyle="--", label="decoder grid")  # fmt: skip
        axes.add_patch(frame)
    for kind, name in enumerate(names or ("images",)):
        of_it = places if labels is None else places[labels == kind]
        colour = COLOURS[kind % len(COLOURS)]
        label = f"{name} ({len(of_it)})"
        axes.scatter(of_it[:, 0], of_it[:, 1], s=14, alpha=0.65, color=colour, linewidths=0,
                     label=label)  # fmt: skip
    axes.set_xlabel(axis_names(facts)[0])
    axes.set_ylabel(axis_names(facts)[1])
    axes.set_title(f"Latent space of {facts['model']}", fontsize=11)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)


def draw_grid(pictures: Sequence[Pixels], facts: Facts, path: Path) -> None:
    """Decoded images ``(height, width, 3)``, row by row, which a square grid of codes gave."""
    side = round(len(pictures) ** 0.5)
    contact_sheet(
        [Tile(_scaled(picture, GRID_TILE)) for picture in pictures], path, columns=side,
        title=f"Decoder of {facts['model']} over the plane",
        subtitle="across and up as in the scatter; nobody's images",
    )  # fmt: skip


def draw_walk(
    pictures: Sequence[Pixels], real: tuple[Pixels, Pixels], facts: Facts, path: Path
) -> None:
    """Decoded images between two given ones, which stand at the ends."""
    last = max(1, len(pictures) - 1)
    tiles = [Tile(_scaled(real[0], WALK_TILE), "given image")]
    tiles += [
        Tile(_scaled(picture, WALK_TILE), f"{number / last:.2f}")
        for number, picture in enumerate(pictures)
    ]
    tiles.append(Tile(_scaled(real[1], WALK_TILE), "given image"))
    contact_sheet(
        tiles, path, columns=len(tiles), title=f"From one image to another, by {facts['model']}",
        subtitle="decoded along a straight line; the images at the ends are the given ones",
    )  # fmt: skip


def _scaled(picture: Pixels, height: int) -> Pixels:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return resize(picture, (width, height))


def write_page(
    places: Places,
    labels: NDArray[np.integer[Any]] | None,
    names: Sequence[str],
    files: Sequence[str],
    facts: Facts,
    extent: tuple[Places, Places] | None,
    folder: Path,
    path: Path,
) -> None:
    """One HTML file that opens from disk and never asks the network.

    Args:
        places: Of the images in the plane ``(N, 2)``.
        labels: Number of the label of each, or None.
        names: Of the labels.
        files: Name of each file, shown over its point.
        facts: As :func:`sentences` takes them.
        extent: Lowest and highest corner of the grid, which is drawn as a frame.
        folder: Where the grid and the interpolation lie, if there are any.
        path: An existing file is replaced.
    """
    corners = np.concatenate([places, *([] if extent is None else [np.stack(extent)])])
    low, high = corners.min(0), corners.max(0)

    def at(place: Places) -> tuple[float, float]:
        x, y = (place - low) / np.maximum(high - low, 1e-12)
        return round(FRAME + PLOT * float(x), 1), round(FRAME + PLOT * (1 - float(y)), 1)

    kinds = np.zeros(len(places), dtype=int) if labels is None else labels
    points = [
        {
            "at": at(place),
            "colour": COLOURS[kind % len(COLOURS)],
            "title": f"{name}, {names[kind]}" if names else name,
        }
        for place, kind, name in zip(places, kinds, files, strict=True)
    ]
    pictures = [
        (title, "data:image/png;base64," + b64encode((folder / name).read_bytes()).decode())
        for title, name in (
            ("Decoder over the plane", "grid.png"),
            ("From one image to another", "interpolation.png"),
        )
        if (folder / name).exists()
    ]
    text = render(
        "latent.html",
        title=f"Latent space of {facts['model']}",
        sentences=sentences(facts),
        axes=axis_names(facts),
        size=PLOT + 2 * FRAME,
        plot=(FRAME, FRAME + PLOT),
        ends=[(number(float(a)), number(float(b))) for a, b in zip(low, high, strict=True)],
        grid=None if extent is None else [at(corner) for corner in extent],
        points=points,
        legend=[(name, COLOURS[n % len(COLOURS)]) for n, name in enumerate(names)],
        pictures=pictures,
    )
    path.write_text(text, encoding="utf-8")
