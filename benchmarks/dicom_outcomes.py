"""What becomes of every DICOM file that pydicom and highdicom ship as test data.

    python benchmarks/dicom_outcomes.py --also highdicom-0.19.0=FOLDER \
        --output benchmarks/results/dicom_outcomes.md

pydicom's files come with its package. highdicom's packages hold none today; its source
distribution 0.19.0 did: unpack that one (``pip download --no-deps --no-binary :all:
highdicom==0.19.0``) and name the folder. Every file is read or refused with a reason. Anything else
is a crash, and the exit code 1.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pydicom.data

from medgen import io
from medgen.errors import InputError

NOT_DATA = {".py", ".pyc", ".md", ".txt", ".json", ".icc", ".dump", ".gz", ".png", ".jpg", ".tar"}


def shipped_with_pydicom() -> list[Path]:
    """Every file beside ``pydicom.data`` that may be DICOM."""
    root = Path(str(pydicom.data.__file__)).parent
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [f for f in files if f.suffix.lower() not in NOT_DATA and f.name != "README"]


def outcome(path: Path) -> tuple[str, str]:
    """``read``, ``refused`` or ``crash``, and what came out or why not."""
    try:
        try:
            volume = io.read(path, allow_constant=True)
        except InputError as error:
            if "and --frame must choose one" not in error.message:
                raise
            volume = io.read(path, frame=0, allow_constant=True)
            frames = io.describe(path)[0]["frames"]
            return "read", f"{shape(volume)}, the first of {frames} frames"
        notes = volume.provenance.details["dicom"]["notes"]
        return "read", "; ".join([shape(volume), *notes])
    except InputError as error:
        # A listing of series is long, and the paths differ from machine to machine.
        return "refused", error.message.replace(str(path), "it").split(":\n")[0]
    except Exception as error:  # the point of it all
        return "crash", f"{type(error).__name__}: {error}"


def shape(volume: io.Volume) -> str:
    """Channels and size, such as ``1 x 128 x 128``."""
    return " x ".join(str(size) for size in volume.voxels.shape)


def rows(sources: dict[str, tuple[Path, list[Path]]]) -> Iterator[tuple[str, str, str, str]]:
    """Source, file, outcome and what came of it."""
    for name, (root, files) in sources.items():
        for path in files:
            yield (name, path.relative_to(root).as_posix(), *outcome(path))


def main() -> int:
    """Try every file and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--also", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    root = Path(str(pydicom.data.__file__)).parent
    sources = {f"pydicom {pydicom.__version__}": (root, shipped_with_pydicom())}
    for also in options.also:
        name, _, folder = also.partition("=")
        sources[name] = (Path(folder), sorted(Path(folder).rglob("*.dcm")))
    found = list(rows(sources))
    lines = [
        "# What becomes of the DICOM files that pydicom and highdicom ship",
        "",
        "`python benchmarks/dicom_outcomes.py`, with the extra `codecs` installed. `x` separates",
        "channels, columns, rows and slices. highdicom's present packages hold no DICOM; the files",
        "are those of its last source distribution that did.",
        "",
        "| source | files | read | refused with a reason | crashed |",
        "|---|---|---|---|---|",
    ]
    for name in sources:
        counted = Counter(result for source, _, result, _ in found if source == name)
        total = sum(counted.values())
        lines.append(
            f"| {name} | {total} | {counted['read']} | {counted['refused']} | {counted['crash']} |"
        )
    lines += ["", "| source | file | outcome | what, or why not |", "|---|---|---|---|"]
    lines += [f"| {s} | {f} | {r} | {' '.join(w.split())} |" for s, f, r, w in found]
    text = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    print("\n".join(lines[:10]))
    return int(any(result == "crash" for _, _, result, _ in found))


if __name__ == "__main__":
    sys.exit(main())
