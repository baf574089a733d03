"""Known damage with known truth: lesions, holes, noise, low resolution, motion, bias fields.

Everything random is drawn from an explicit ``torch.Generator``, so the same seed gives the same
damage. :mod:`.lesions` paints anomalies into images drawn from labels, :mod:`.holes` cuts what is
to be filled in again, :mod:`.noise` and :mod:`.artefacts` degrade as scanners do, and
:mod:`.resolution` samples a fine grid coarsely and back.
"""

from medgen.corruption.lesions import (
    Box,
    Lesion,
    LesionShapes,
    appearance,
    blob,
    chance,
    gaussian_blur,
    paint_lesions,
    random_rotation,
    random_voxel,
    smooth_noise,
    uniform,
)

__all__ = [
    "Box",
    "Lesion",
    "LesionShapes",
    "appearance",
    "blob",
    "chance",
    "gaussian_blur",
    "paint_lesions",
    "random_rotation",
    "random_voxel",
    "smooth_noise",
    "uniform",
]
