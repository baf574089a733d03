"""``medgen translate``: parse, call the task, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from medgen.cli import options, restoration
from medgen.cli.restoration import Shared, with_shared_options

if TYPE_CHECKING:
    from medgen.manifest import Manifest

EPILOG = (
    "**Examples**\n\n"
    "medgen translate sub-01_T1w.nii.gz --to t2 -o out\n\n"
    "medgen translate sub-01_T1w.nii.gz --to flair -o out\n\n"
    "medgen translate dicom_folder/ --to flair -o out --dicom-out\n\n"
    "medgen translate scan.nii.gz --to t2 -o out --dry-run"
)


@with_shared_options
def translate(
    shared: Shared,
    to: Annotated[
        str | None,
        typer.Option(
            help="The contrast or modality to make, such as t2 or flair. Not needed if the model "
            "makes only one.",
            metavar="TARGET",
        ),
    ] = None,
    model: options.RestorationModel = "brain-t1-translation",
) -> None:
    """Make a scan of another contrast or modality from this one.

    Writes the synthetic image on the grid of the input; a map of how sure every voxel is; whether
    structures stayed where they were; run.json; and a report to compare. Nothing in the result was
    measured by a scanner.
    """

    def target(manifest: Manifest) -> str:
        from medgen.tasks.translate import choose_target

        return choose_target(manifest, to)

    restoration.run("translate", shared, model, target, given={"to": to}, words={"to": to})
