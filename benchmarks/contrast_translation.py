"""T1 to T2 and FLAIR on real patients with lesions, by a model package and by no model.

    python benchmarks/contrast_translation.py --data DIR --model brain-t1-translation \
        --output benchmarks/results/translation_contrast.md

Nothing is trained here. The scans are one patient with multiple sclerosis (a volume) and eight
patients with a glioma (one slice each), none of which any model has seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from restoration_truths import described, models
from skimage.exposure import match_histograms

import medgen
from medgen import io
from medgen.metrics import bootstrap_interval
from medgen.metrics.paired import mean_absolute_error, psnr, ssim
from medgen.metrics.structure import structure
from medgen.package import ModelPackage

TARGETS = ("t2", "flair")
PERCENTILES = (1.0, 99.0)
# Labels of the glioma slices from here on are tumour and oedema.
FIRST_TUMOUR_LABEL = 4
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
# Name: heading and digits.
COLUMNS = {
    "mae": ("MAE", 4),
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "lesion_contrast": ("lesion contrast", 3),
    "edges_kept": ("edges kept", 3),
    "edges_new": ("edges new", 3),
    "tissue_dice": ("tissue Dice", 3),
}


@dataclass(frozen=True, eq=False)
class Case:
    """One patient: the files of the contrasts, and where the lesions are."""

    group: str
    name: str
    t1: Path
    targets: dict[str, Path]
    lesion: Mask


def cases(data: Path) -> list[Case]:
    """All patients with a T1 and both targets."""
    folder = data / "brain" / "ms_patient26"
    found = [
        Case(
            "multiple sclerosis",
            "ms_patient26",
            folder / "t1.nii.gz",
            {name: folder / f"{name}.nii.gz" for name in TARGETS},
            values(folder / "lesion.nii.gz") > 0,
        )
    ]
    for t1 in sorted((data / "brain" / "tumour_slices").glob("T*Data/*/*_T1_slice*.nii.gz")):
        others = {
            name: t1.with_name(t1.name.replace("_T1_", f"_{name.upper()}_")) for name in TARGETS
        }
        labels = values(t1.with_name(t1.name.replace("_T1_", "_atropos_truth_")))
        lesion = labels >= FIRST_TUMOUR_LABEL
        found.append(Case("glioma", t1.parent.name, t1, others, lesion))
    return found


def values(path: Path) -> Image:
    """The voxels of a file with one channel."""
    return io.read(path).voxels[0].astype(np.float32)


def scaled(image: Image, brain: Mask) -> Image:
    """The image with 0 and 1 at its percentiles inside the brain, whoever made it."""
    low, high = np.percentile(image[brain], PERCENTILES)
    return ((image - low) / max(float(high - low), 1e-6)).astype(np.float32)


def contrast(image: Image, lesion: Mask, brain: Mask) -> float:
    """Median of the lesions minus that of the other brain: what one sees of them."""
    return float(np.median(image[lesion & brain]) - np.median(image[brain & ~lesion]))


def measured(t1: Image, made: Image, truth: Image, lesion: Mask) -> dict[str, float | None]:
    """The numbers of one result; images with values of their own."""
    brain = (t1 > 0) & (truth > 0)
    made, truth = scaled(made, brain), scaled(truth, brain)
    return {
        "mae": mean_absolute_error(truth, made, brain),
        "psnr": psnr(truth, made, 1.0, brain) if not np.array_equal(truth, made) else None,
        "ssim": ssim(truth, made, 1.0, brain),
        "lesion_contrast": contrast(made, lesion, brain),
        **vars(structure(t1, made, brain)),
    }


def matched(image: Image, t1: Image, truth: Image) -> Image:
    """An image with the histogram of the truth, which no method knows, inside the brain."""
    brain, result = (t1 > 0) & (truth > 0), np.zeros_like(t1)
    result[brain] = match_histograms(image[brain], truth[brain])
    return result


def translate(model: ModelPackage, case: Case, target: str, device: str) -> Image:
    """What a model makes of the patient's T1."""
    found = medgen.translate(case.t1, model=model, to=target, device=device)
    return np.asarray(found.output, np.float32)


def line(name: str, rows: list[dict[str, float | None]]) -> str:
    """One line of a table: means over the patients where a number is defined."""
    cells = []
    for column, (_, digits) in COLUMNS.items():
        numbers = np.array([row[column] for row in rows if row[column] is not None], float)
        text = f"{numbers.mean():.{digits}f}" if len(numbers) else "–"
        if column == "mae" and len(numbers) > 1 and name != "truth":
            interval = bootstrap_interval(numbers, seed=0)
            text += f" [{interval.low:.3f}, {interval.high:.3f}]"
        cells.append("–" if name == "truth" and column in {"mae", "psnr", "ssim"} else text)
    return f"| {name} | {' | '.join(cells)} |"


def introduction(given: Mapping[str, ModelPackage]) -> list[str]:
    """What the tables show and how they were made."""
    return [
        "# T1 to T2 and FLAIR on real patients",
        "",
        f"`python benchmarks/contrast_translation.py --data DIR --model {' '.join(given)} "
        "--output FILE`",
        "",
        "Nothing was trained on these scans: one volume of a patient with multiple sclerosis "
        "(Lesjak et al. 2017) and one slice each of eight patients with a glioma (BRATS 2013 "
        "example data). All numbers are taken inside the brain, after each image was scaled so "
        f"that its percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} there are 0 and 1; PSNR "
        "and SSIM for a range of 1. Brackets: 95 % bootstrap interval over patients.",
        "",
        "*Lesion contrast*: median inside the lesions minus that of the other brain; the truth's "
        "is what a faithful result has, and a small one means that lesions do not show. *Edges "
        "kept*, *edges new*, *tissue Dice*: the result against the T1 it was made from; to be "
        "compared with the truth's. *Histogram-matched* results have the very histogram of the "
        "truth, which no method can know: what they lack is only the right place.",
        "",
        *described(given),
    ]


def main() -> None:
    """Translate, measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds brain/")
    parser.add_argument(
        "--model", nargs="*", default=["brain-t1-translation"], help="NAME=FOLDER or name"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file; JSON beside it")
    options = parser.parse_args()
    given = models(options.model)
    found: dict[tuple[str, str], dict[str, list[dict[str, float | None]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    record = []
    for case in cases(options.data):
        t1 = values(case.t1)
        for target, path in case.targets.items():
            truth = values(path)
            made = {
                "truth": truth,
                "identity": t1,
                "histogram-matched T1": matched(t1, t1, truth),
            }
            for name, model in given.items():
                made[name] = translate(model, case, target, options.device)
                made[f"{name}, histogram-matched"] = matched(made[name], t1, truth)
            for name, image in made.items():
                numbers = measured(t1, image, truth, case.lesion)
                found[target, case.group][name].append(numbers)
                record.append({"case": case.name, "target": target, "row": name, **numbers})
    text = introduction(given)
    for (target, group), results in sorted(found.items(), reverse=True):
        patients = len(results["truth"])
        text += [
            f"## T1 to {target.upper()}: {group}, {patients} patient{'s' * (patients > 1)}",
            "",
            "| result | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |",
            "|---|" + "---|" * len(COLUMNS),
            *(line(name, rows) for name, rows in results.items()),
            "",
        ]
    sys.stdout.write("\n".join(text) + "\n")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(text) + "\n", encoding="utf-8")
    beside = options.output.with_suffix(".json")
    beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
