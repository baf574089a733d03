"""``medgen super-resolve``: parse, call the task, print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medgen.cli import options, restoration
from medgen.cli.restoration import Shared, with_shared_options

if TYPE_CHECKING:
    from medgen.manifest import Manifest

EPILOG = (
    "**Examples**\n\n"
    "medgen super-resolve sub-01_T1w.nii.gz --scale 2 -o out\n\n"
    "medgen super-resolve thick_slices.nii.gz --isotropic -o out\n\n"
    "medgen super-resolve dicom_folder/ --spacing 1.0 -o out --dicom-out\n\n"
    "medgen super-resolve scan.nii.gz --scale 2 -o out --model cubic"
)


@with_shared_options
def super_resolve(
    shared: Shared,
    scale: Annotated[
        float | None, typer.Option(help="How many times finer each axis becomes.", metavar="TIMES")
    ] = None,
    spacing: Annotated[
        float | None, typer.Option(help="Voxel size of the result along each axis.", metavar="MM")
    ] = None,
    isotropic: Annotated[
        bool,
        typer.Option(
            "--isotropic", metavar="", help="Make all sides of a voxel as small as its smallest."
        ),
    ] = False,
    consistency: Annotated[
        Literal["noise", "exact", "none"],
        typer.Option(
            help="Correct the result so that coarsening it gives the scan back: as far as the "
            "scan's noise allows, exactly, or not at all."
        ),
    ] = "noise",
    model: options.RestorationModel = "brain-super-resolution",
) -> None:
    """Give a scan a finer voxel grid.

    Say how fine with one of --scale, --spacing and --isotropic. Writes the finer scan over the
    same field of view; a map of how sure every voxel is; how well it agrees with the scan it came
    from; run.json; and a report to compare with interpolation. Without training: --model nearest,
    linear or cubic.
    """
    wish = {"scale": scale, "spacing_mm": spacing, "isotropic": isotropic}

    def check(facts: Mapping[str, Any], manifest: Manifest) -> Sequence[str]:
        from medgen.tasks.restoration_plan import plan_finer_grid

        grid = plan_finer_grid(facts, **wish)
        size = " x ".join(map(str, grid.fine.shape))
        return [f"{grid.note}, {size} in all"]

    restoration.run(
        "super-resolve", shared, model, "superresolved",
        given={**wish, "consistency": consistency},
        words={
            "scale": scale, "spacing": spacing, "isotropic": isotropic,
            "consistency": None if consistency == "noise" else consistency,
        },
        check=check,
    )  # fmt: skip
