"""False findings on healthy anatomy: a real head with skull, and the ICBM 152 template.

python benchmarks/healthy_scans.py --data DIR --output benchmarks/results/healthy_scans.md
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import medgen
from medgen.volume import Volume

LARGEST_ML = 0.5
HEAD = (
    "| scan | model | threshold | findings | largest ml | above 0.5 ml | scan score | p |",
    "|---|---|---|---|---|---|---|---|",
)


def healthy_scans(data: Path) -> dict[str, Path | Volume]:
    """Scans of people, or an average of people, without known lesions."""
    from nilearn import datasets

    template = datasets.load_mni152_template(resolution=1)
    inside = datasets.load_mni152_brain_mask(resolution=1).get_fdata() > 0
    brain = (template.get_fdata() * inside).astype("float32")
    return {
        "T1 head with skull (0.88 mm)": data / "brain" / "heads" / "t1_with_skull.nii.gz",
        "ICBM 152 T1 template (1 mm, average of 152)": Volume.from_array(brain, template.affine),
    }


def main() -> None:
    """Detect, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds brain/")
    parser.add_argument("--model", nargs="*", default=["brain-mr", "intensity"])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    lines = [
        "# False findings on healthy anatomy",
        "",
        f"`python benchmarks/healthy_scans.py --data DIR --model {' '.join(options.model)}`, each "
        "model at its default threshold. Neither scan was used for training or calibration; both "
        "were looked at before the allowed number of false findings per drawn scan was chosen. "
        "`intensity` is not calibrated: it marks the brightest 2 %.",
        "",
        *HEAD,
    ]
    for name, scan in healthy_scans(options.data).items():
        for model in options.model:
            found = medgen.detect_anomalies(scan, model=model, device="cpu")
            volumes = sorted((f.volume_mm3 / 1000 for f in found.findings), reverse=True)
            p_value = "–" if found.p_value is None else f"{found.p_value:.2f}"
            lines.append(
                f"| {name} | `{model}` | {found.threshold:.3f} | {len(volumes)} | "
                f"{volumes[0] if volumes else 0:.2f} | {sum(v > LARGEST_ML for v in volumes)} | "
                f"{found.score:.3f} | {p_value} |"
            )
    text = "\n".join([*lines, ""])
    sys.stdout.write(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
