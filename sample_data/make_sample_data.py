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
# A chronic lesion on T1 is darker than grey matter and brighter than fluid.
LESION_BRIGHTNESS = 0.5  # of the white matter around it


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
    """The average brain; the same with a lesion drawn into it; and where the lesion is."""
    brain, affine = template()
    opacity = lesion_opacity(brain.shape, affine)
    white = np.median(brain[opacity > 0.5])
    # Some of the texture under the lesion shines through, as it does in a partly damaged tissue.
    sick = LESION_BRIGHTNESS * white + 0.4 * (brain - white)
    damaged = brain + opacity * (sick - brain)
    save(folder / "icbm152_t1.nii.gz", brain, affine)
    save(folder / "icbm152_t1_lesion.nii.gz", damaged, affine)
    save(folder / "icbm152_t1_lesion_mask.nii.gz", opacity >= 0.5, affine)


def template() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ICBM 152 T1 average, 0 to 255, on a grid of 1.5 mm around the brain; and its affine."""
    import nilearn.datasets

    data = Path(nilearn.datasets.__file__).parent / "data"
    image = nib.load(data / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
    fine = np.asarray(image.dataobj, dtype=np.float64)
    inside = np.argwhere(fine > 0)
    first = inside.min(axis=0) - 6
    shape = np.ceil((inside.max(axis=0) + 7 - first) / SPACING_MM).astype(int)
    step = np.full(3, SPACING_MM)
    brain = ndimage.affine_transform(fine, step, offset=first, output_shape=tuple(shape), order=1)
    # Outside stays exactly zero, as brain extraction leaves it.
    mask = ndimage.affine_transform(
        (fine > 0).astype(np.float64), step, offset=first, output_shape=tuple(shape), order=1
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
    nib.save(image, path)


if __name__ == "__main__":
    main()
