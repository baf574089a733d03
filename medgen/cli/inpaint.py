"""``medgen inpaint``: parse, call the task, print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medgen.cli import options, restoration
from medgen.cli.restoration import Shared, with_shared_options

if TYPE_CHECKING:
    from medgen.manifest import Manifest

EPILOG = (
    "**Examples**\n\n"
    "medgen inpaint sub-01_T1w.nii.gz --mask lesion.nii.gz -o out\n\n"
    "medgen inpaint sub-01_FLAIR.nii.gz --remove-anomalies -o pseudo_healthy\n\n"
    "medgen inpaint ct_folder/ --remove-metal 2500 -o out --dicom-out\n\n"
    "medgen inpaint scan.nii.gz --mask lesion.nii.gz -o out --model biharmonic"
)


@with_shared_options
def inpaint(
    shared: Shared,
    mask: Annotated[
        Path | None,
        typer.Option(help="Image that is nonzero where the scan shall be filled.", metavar="MASK"),
    ] = None,
    remove_anomalies: Annotated[
        bool,
        typer.Option(
            "--remove-anomalies",
            metavar="",
            help="Find anomalies and fill them: the scan as it might look if healthy.",
        ),
    ] = False,
    detector: Annotated[
        str, typer.Option(help="Model for --remove-anomalies.", metavar="MODEL")
    ] = "brain-mr",
    remove_metal: Annotated[
        float | None,
        typer.Option(
            help="CT: fill what is brighter than this, such as 2500, and the streaks around it.",
            metavar="HU",
        ),
    ] = None,
    grow: Annotated[
        float, typer.Option(help="Fill this far around the mask, too.", metavar="MM", min=0.0)
    ] = 0.0,
    resample_mask: Annotated[
        bool,
        typer.Option(
            "--resample-mask", metavar="", help="Bring a mask of another grid onto the scan's."
        ),
    ] = False,
    model: options.RestorationModel = "biharmonic",
) -> None:
    """Fill parts of a scan with what might be there.

    Say what to fill with --mask, --remove-anomalies or --remove-metal. Writes the filled
    scan, which outside the filled part equals the input bit for bit; a mask of what was invented;
    if a network filled them, a map of how sure every filled voxel is; run.json; and a report to
    compare. Without training: --model biharmonic, the smoothest surface, or nearest.
    """

    def check(facts: Mapping[str, Any], manifest: Manifest) -> Sequence[str]:
        from medgen.tasks.inpaint import refuse_nothing
        from medgen.tasks.restoration_plan import check_mask_facts

        refuse_nothing(mask, remove_anomalies, remove_metal)
        if mask is not None:
            check_mask_facts(mask, facts, resample_mask=resample_mask)
        return []

    # A folder may be named after a patient; of a path, only the package's own name is said.
    detector_name = detector if Path(detector).name == detector else "MODEL"

    restoration.run(
        "inpaint", shared, model, "inpainted",
        given={
            "mask": mask, "remove_anomalies": remove_anomalies, "detector": detector,
            "remove_metal": remove_metal, "grow_mm": grow, "resample_mask": resample_mask,
        },
        words={
            "mask": None if mask is None else "MASK", "remove-anomalies": remove_anomalies,
            "detector": detector_name if remove_anomalies else None, "remove-metal": remove_metal,
            "grow": grow or None, "resample-mask": resample_mask,
        },
        check=check, also_read=() if mask is None else (mask,),
    )  # fmt: skip
