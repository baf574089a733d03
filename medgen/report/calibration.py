"""Pictures of scan scores: of the normals of a calibration, and of a batch beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.scoring.conformal import Drift, p_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Distinct for the colour-blind (Wong 2011).
NORMAL, OTHER, LIMIT = "#0072b2", "#d55e00", "#555555"
ALARM = 0.05


def draw_calibration(
    normals: Sequence[float], path: Path, *, parent: Sequence[float] = (), parent_name: str = ""
) -> None:
    """The p-value that each scan score gets, by the new normals and by those of the parent.

    Args:
        normals: Scan scores of the calibration.
        path: PNG to write.
        parent: Scan scores of the model's earlier calibration, if it has one.
        parent_name: Of the model.
    """
    axes, save = _axes(1)
    axis = axes[0]
    curves = [(f"these {len(normals)} normals", normals, NORMAL)]
    if parent:
        curves.append((f"{parent_name}, {len(parent)} normals", parent, OTHER))
    scores = np.concatenate([np.asarray(values) for _, values, _ in curves])
    margin = 0.08 * (float(np.ptp(scores)) or 1.0)
    at = np.linspace(scores.min() - margin, scores.max() + margin, 2000)
    for label, values, colour in curves:
        axis.plot(at, p_values(values, at), color=colour, label=label)
        _ticks(axis, values, colour)
    axis.axhline(ALARM, color=LIMIT, linestyle=":", linewidth=1)
    axis.text(at[0], ALARM, f" {ALARM:g}", va="bottom", color=LIMIT, fontsize=9)
    axis.set(xlabel="scan score", ylabel="p-value that a scan gets", ylim=(0, 1.03))
    axis.legend(frameon=False)
    save(path)


def draw_drift(
    normals: Sequence[float], batch: Sequence[float], found: Drift, path: Path, title: str
) -> None:
    """Both distributions of scores, and whether the batch's p-values are uniform.

    The grey band holds the share of p-values at each height for 95 % of normal batches of this
    size (beta-binomial, point by point).

    Args:
        normals: Scan scores of the reference.
        batch: Scan scores of the batch, one a person as in the reference.
        found: Their comparison.
        path: PNG to write.
        title: Of the picture.
    """
    from scipy.stats import betabinom

    axes, save = _axes(2)
    for label, values, colour in (
        (f"{found.reference} normals", normals, NORMAL),
        (f"{found.batch} of the batch", batch, OTHER),
    ):
        axes[0].ecdf(values, color=colour, label=label)
        _ticks(axes[0], values, colour)
    axes[0].set(xlabel="scan score", ylabel="share of people with this score or less")
    axes[0].legend(frameon=False, loc="upper left")

    # The p-values take only these values, and are uniform on them if the batch is normal.
    steps = np.arange(1, found.reference + 1)
    grid = steps / (found.reference + 1)
    low, high = betabinom.ppf(
        np.array([[0.025], [0.975]]), found.batch, steps, found.reference + 1 - steps
    )
    axes[1].fill_between(
        grid, low / found.batch, high / found.batch, step="post", color="0.88", linewidth=0
    )
    axes[1].plot((0, 1), (0, 1), color=LIMIT, linestyle=":", linewidth=1)
    axes[1].ecdf(p_values(normals, batch), color=OTHER)
    axes[1].set(xlabel="p-value", ylabel="share of the batch with this p-value or less")
    axes[1].set(xlim=(0, 1), ylim=(0, 1.02))
    figure = axes[0].figure
    figure.suptitle(title, fontsize=12)
    save(path)


def _ticks(axis: Axes, values: Sequence[float], colour: str) -> None:
    """A mark for every score at the foot of the picture."""
    foot: NDArray[Any] = np.zeros(len(values))
    axis.plot(values, foot, "|", color=colour, markersize=10, clip_on=False, zorder=3)


def _axes(count: int) -> tuple[list[Axes], Any]:
    """Axes side by side, and what saves them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * count + 0.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, count)))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    # Without the version of matplotlib, the same numbers give the same file.
    return axes, lambda path: figure.savefig(path, dpi=120, metadata={"Software": None})
