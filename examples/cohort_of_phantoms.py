"""Run a pipeline over a folder of scans, from Python: nine drawn heads, three with a lesion.

The untrained model `intensity` looks for bright places. Each case is recorded as done, failed or
skipped. Run it with the name of the picture to save:
`python examples/cohort_of_phantoms.py cohort_of_phantoms.png`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from medgen import io, phantoms
from medgen.batch.prepare import Options
from medgen.batch.run import run_cohort

PIPELINE = """
name: example
description: Bright places in drawn heads
task: {name: detect-anomalies, model: intensity, report: false}
"""


def main(picture: Path, folder: Path) -> None:
    """Draw the heads, run the pipeline, read the summary, and put the thumbnails on one sheet."""
    archive, results = folder / "scans", folder / "results"
    for number in range(9):
        radius = 12.0 if number % 3 == 0 else None
        head = phantoms.brain(
            (48, 56, 40), spacing_mm=3.0, contrast="flair", seed=number, lesion_radius_mm=radius
        )
        name = f"head-{number}{'-lesion' if radius else ''}_FLAIR.nii.gz"
        io.write_nifti(archive / name, head.image.voxels[0], head.image.geometry)
    pipeline = folder / "pipeline.yaml"
    pipeline.write_text(PIPELINE, encoding="utf-8")

    counts = run_cohort(Options(pipeline, archive, results, device="cpu", workers=1))

    cases = json.loads((results / "summary.json").read_text(encoding="utf-8"))["cases"]
    largest = sorted(cases, key=lambda case: case["values"]["largest_ml"], reverse=True)[:3]
    found = sum("lesion" in case["case"] for case in largest)
    print(f"{counts['done']} cases done; of the 3 largest findings {found} are in heads with one")
    assert counts == {"done": 9}
    assert found == 3

    sheet = Image.new("RGB", (3 * 160, 3 * 160))
    for place, case in enumerate(cases):
        with Image.open(results / case["thumbnail"]) as thumbnail:
            sheet.paste(thumbnail.convert("RGB"), (place % 3 * 160, place // 3 * 160))
    sheet.save(picture)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]), Path(temporary))
