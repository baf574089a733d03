"""Make every file in this folder again: `python sample_data/make_sample_data.py [FOLDER]`.

Needs nilearn (in the `dev` extra), whose package contains the ICBM 152 template; no network.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medgen import phantoms
from medgen.io import write_dicom_series
from medgen.preparation import resample
from medgen.volume import Geometry, Volume

SPACING_MM = 1.5
# Deep white matter of the right frontal lobe, in MNI coordinates (RAS+ mm).
LESION_CENTRE_MM = (27.0, -10.0, 35.0)
LESION_RADIUS_MM = 9.0
# A chronic lesion on T1 is darker than grey matter and brighter than fluid; on FLAIR it is
# brighter than both. As a part of the white matter around it:
LESION_BRIGHTNESS = {"t1": 0.5, "flair": 1.55}
# White matter, grey matter and fluid on FLAIR, as a part of the brightest value.
FLAIR = (0.60, 0.74, 0.15)


def main() -> None:
    """Write everything into the given folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_template(folder)
    write_phantom(folder)
    write_dicom(folder)


def write_template(folder: Path) -> None:
    """The average brain; a lesion drawn into it, on T1 and on a FLAIR-like image; its mask."""
    brain, affine = template("t1")
    opacity = lesion_opacity(brain.shape, affine)
    sick = with_lesion(brain, opacity, "t1")
    # Even numbers: nobody sees the difference, and the files are a fifth smaller.
    save(folder / "icbm152_t1.nii.gz", even(brain), affine)
    save(folder / "icbm152_t1_lesion.nii.gz", even(sick), affine)
    # There is no FLAIR average: its contrast is drawn from the average tissue maps.
    white, grey = (template(tissue)[0] / 255 for tissue in ("wm", "gm"))
    fluid = np.clip(1 - white - grey, 0, 1)
    parts = zip(FLAIR, (white, grey, fluid), strict=True)
    flair = np.where(brain > 0, 200 * sum(level * part for level, part in parts), 0)
    sick = with_lesion(flair, opacity, "flair")
    save(folder / "icbm152_flair_lesion.nii.gz", even(sick), affine)
    save(folder / "icbm152_lesion_mask.nii.gz", opacity >= 0.5, affine)


def even(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest even numbers up to 254."""
    return 2 * np.rint(values / 2).clip(0, 127)


def with_lesion(
    brain: NDArray[np.float64], opacity: NDArray[np.float64], contrast: str
) -> NDArray[np.float64]:
    """The brain with the lesion painted in.

    Some of the texture under the lesion shines through, as it does in a partly damaged tissue.
    """
    white = np.median(brain[opacity > 0.5])
    sick = LESION_BRIGHTNESS[contrast] * white + 0.4 * (brain - white)
    return brain + opacity * (sick - brain)


def template(kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ICBM 152 average (t1, gm or wm), 0 to 255, at 1.5 mm around the brain; and its affine."""
    import nilearn.datasets

    data = Path(nilearn.datasets.__file__).parent / "data"
    outline = nib.load(data / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    image = nib.load(data / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    fine = np.asarray(image.dataobj, dtype=np.float64)
    whole = np.asarray(outline.dataobj) > 0
    inside = np.argwhere(whole)
    first = inside.min(axis=0) - 6
    shape = np.ceil((inside.max(axis=0) + 7 - first) / SPACING_MM).astype(int)
    step = np.full(3, SPACING_MM)
    brain = ndimage.affine_transform(fine, step, offset=first, output_shape=tuple(shape), order=1)
    # Outside stays exactly zero, as brain extraction leaves it.
    mask = ndimage.affine_transform(
        whole.astype(np.float64), step, offset=first, output_shape=tuple(shape), order=1
    )
    affine = image.affine @ np.diag([*step, 1.0])
    affine[:3, 3] = image.affine[:3, :3] @ first + image.affine[:3, 3]
    return np.where(mask > 0.5, brain, 0), affine


def lesion_opacity(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 (healthy) to 1 (lesion) `(X, Y, Z)`: a ragged blob with an edge about 3 mm wide."""
    rng = np.random.default_rng(7)
    voxels = np.moveaxis(np.indices(shape, dtype=np.float64), 0, -1)
    offset = voxels @ affine[:3, :3].T + affine[:3, 3] - LESION_CENTRE_MM
    stretch = np.array([0.8, 1.25, 0.9])  # longer from front to back, like the fibres there
    distance = np.linalg.norm(offset / stretch, axis=-1)
    ragged = ndimage.gaussian_filter(rng.normal(size=shape), 4.0 / SPACING_MM)
    ragged *= 2.0 / ragged.std()
    return np.clip((LESION_RADIUS_MM + ragged - distance) / 3.0 + 0.5, 0, 1)


def write_phantom(folder: Path) -> None:
    """A drawn head, FLAIR-like, with a lesion, and where the lesion is."""
    made = phantoms.brain(
        (64, 80, 56), spacing_mm=2.5, seed=3, contrast="flair", lesion_radius_mm=8
    )
    save(folder / "phantom_flair.nii.gz", made.image.voxels[0] / 5, made.image.affine)
    save(folder / "phantom_flair_lesion_mask.nii.gz", made.lesion, made.image.affine)


def write_dicom(folder: Path) -> None:
    """A drawn head with its skull as an MR series, slices tilted by 15 degrees."""
    made = phantoms.brain((96, 112, 88), spacing_mm=2.0, seed=11, contrast="t1", skull=True)
    tilt = np.deg2rad(15)
    affine = np.eye(4)
    # Columns to the left, rows to the back, slices upwards: how scanners store axial slices.
    affine[:3, 0] = (-2.5, 0, 0)
    affine[:3, 1] = -2.5 * np.array([0, np.cos(tilt), np.sin(tilt)])
    affine[:3, 2] = 4.5 * np.array([0, -np.sin(tilt), np.cos(tilt)])
    shape = (64, 80, 30)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    grid = Geometry(shape, affine)
    values = np.rint(resample(made.image.voxels[0], made.image.geometry, grid)).astype(np.uint16)
    series = Volume(values[None], grid, made.image.provenance)
    write_dicom_series(
        folder / "dicom_t1", series, seed="medgen sample data", description="T1 phantom",
        overwrite=True,
    )  # fmt: skip


def save(path: Path, values: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write 8-bit NIfTI with sform and qform (nibabel leaves no date in the file)."""
    image = nib.Nifti1Image(
        np.rint(values.astype(np.float64)).clip(0, 255).astype(np.uint8), affine
    )
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code=4 if path.name.startswith("icbm") else 2)
    image.set_qform(affine, code=4 if path.name.startswith("icbm") else 2)
    nib.openers.Opener.default_compresslevel = 9
    nib.save(image, path)


if __name__ == "__main__":
    main()
