"""What a study of anomaly detection costs beside the network's own work, and its memory.

`medgen evaluate anomaly` runs as a whole process on few and on more heads at 1 mm, so that the
difference is what a case takes once everything is loaded: reading, preparing, predicting, every
protocol's map, precision-recall and free-response curves, of the model and of the baselines by
brightness that stand in every study. The floor of a case is the same network on the same batches
and nothing else. All in processor time. A study that kept the volumes it has seen would need more
memory for more heads.

    python benchmarks/evaluation_speed.py --model brain-mr \
        --output benchmarks/results/evaluation_speed.md
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from speed import batch_shapes

SHAPE = (160, 192, 160)
FEW, MANY = 2, 6
STUDIES = (("as_shipped",), ("kascenas2022",), ("baur2021", "kascenas2022", "as_shipped"))


def draw_heads(folder: Path, model: str) -> float:
    """Write the heads and their lesions; seconds of the bare forward passes of one."""
    from medgen import io
    from medgen.package import load_package
    from medgen.phantoms import brain

    for number in range(MANY):
        drawn = brain(SHAPE, spacing_mm=1.0, contrast="flair", lesion_radius_mm=9.0, seed=number)
        geometry = drawn.image.geometry
        image = drawn.image.voxels[0].astype("int16")
        io.write_nifti(folder / f"head{number}_flair.nii.gz", image, geometry, kind="image")
        lesion = drawn.lesion.astype("uint8")
        io.write_nifti(folder / f"head{number}_lesion.nii.gz", lesion, geometry, kind="label")
    package = load_package(model)
    shapes = batch_shapes(package, io.read(folder / "head0_flair.nii.gz"))
    method, times = package.method(), []
    for _ in range(3):
        began = time.process_time()
        with torch.inference_mode():
            for shape in shapes:
                method.predict(torch.zeros(shape))
        times.append(time.process_time() - began)
    return statistics.median(times)


def cost(folder: Path, model: str, protocols: tuple[str, ...], cases: int) -> tuple[float, float]:
    """Processor seconds and peak memory (GB) of a study of so many heads."""
    study = {
        "name": "speed", "protocols": list(protocols), "models": [model],
        "test": {
            "images": f"head[0-{cases - 1}]_flair.nii.gz",
            "masks": {"_flair": "_lesion"},
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "study.yaml"
        file.write_text(yaml.safe_dump(study))
        medgen = str(Path(sys.executable).with_name("medgen"))
        command = [
            medgen, "evaluate", "anomaly", str(file), "--data", str(folder),
            "-o", str(Path(name) / "out"), "--device", "cpu", "-q",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed")
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="brain-mr")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    lines = [
        "# Speed and memory of a study",
        "",
        f"`python benchmarks/evaluation_speed.py --model {options.model}`, "
        f"{torch.get_num_threads()} thread ({platform.machine()}), Python "
        f"{platform.python_version()}; drawn heads of {' x '.join(map(str, SHAPE))} voxels, 1 mm.",
        "",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        floor = draw_heads(folder, options.model)
        lines += [
            f"Bare forward passes of `{options.model}` on one head: {floor:.2f} s. Whole "
            "processes, each with the baselines by brightness; processor seconds.",
            "",
            f"| protocols | {FEW} heads, s | {MANY} heads, s | one more head, s | heads an hour | "
            f"times its floor | peak memory of {FEW} heads, GB | of {MANY} heads, GB |",
            "|---" * 8 + "|",
        ]
        for protocols in STUDIES:
            (few, few_gb), (many, many_gb) = (
                cost(folder, options.model, protocols, cases) for cases in (FEW, MANY)
            )
            more = (many - few) / (MANY - FEW)
            lines.append(
                f"| {', '.join(protocols)} | {few:.1f} | {many:.1f} | {more:.2f} | "
                f"{3600 / more:.0f} | {more / floor:.2f} | {few_gb:.2f} | {many_gb:.2f} |"
            )
            print(lines[-1], flush=True)
    lines += [
        "",
        "With more heads, each costs more: a free-response curve up to five false findings per "
        "scan has to follow every scan to five times their number, as one scan might have them "
        "all. With six heads that, done in Python voxel by voxel, is half of what a voxel "
        "protocol takes (by a profile of kascenas2022).",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
