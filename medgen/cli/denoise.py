"""``medgen denoise``: parse, call the task, print."""

from __future__ import annotations

from typing import Annotated

import typer

from medgen.cli import options, restoration
from medgen.cli.restoration import Shared, with_shared_options

EPILOG = (
    "**Examples**\n\n"
    "medgen denoise sub-01_T1w.nii.gz -o out\n\n"
    "medgen denoise dicom_folder/ -o out --dicom-out\n\n"
    "medgen denoise scan.nii.gz -o out --model nlm\n\n"
    "medgen denoise scan.nii.gz -o out --json -q | jq .measures"
)


@with_shared_options
def denoise(
    shared: Shared,
    strength: Annotated[
        float,
        typer.Option(help="Part of the noise to take out, 0 to 1; the rest stays.", metavar="PART"),
    ] = 1.0,
    model: options.RestorationModel = "brain-denoise",
) -> None:
    """Take noise out of a scan.

    Writes the denoised scan on the grid of the input, in its own values; a map of how sure every
    voxel is; run.json; and a report to compare before and after. Without training: --model nlm
    (non-local means), tv (total variation) or wavelet.
    """
    restoration.run(
        "denoise",
        shared,
        model,
        "denoised",
        given={"strength": strength},
        words={"strength": None if strength == 1 else strength},
    )
