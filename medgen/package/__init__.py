"""Model packages: a trained method with everything needed to use it, as plain data.

A package is a folder with ``medgen.json`` (see :mod:`medgen.manifest`), ``weights.safetensors.xz``,
``CARD.md``, ``golden/``, a tiny input and what it must give, and what its task needs besides: a
calibration, features of the training images, directions of attributes. Loading one can only build
classes of medgen's own registry: there is no code, pickle or URL in it.
"""

from medgen.package.detection import ScanMaps, run_model
from medgen.package.files import (
    ATTRIBUTES,
    CARD,
    TRAINING_FEATURES,
    WEIGHTS,
    ModelPackage,
    list_packages,
    load_package,
    package_folders,
    packages_for,
    require_task,
    search_folders,
)
from medgen.package.golden import verify_package
from medgen.package.restoration import Correction, restoration_memory_gb, run_restoration
from medgen.package.saving import save_package, save_recalibrated

__all__ = [
    "ATTRIBUTES", "CARD", "TRAINING_FEATURES", "WEIGHTS", "Correction", "ModelPackage", "ScanMaps",
    "list_packages", "load_package", "package_folders", "packages_for", "require_task",
    "restoration_memory_gb", "run_model", "run_restoration", "save_package",
    "save_recalibrated", "search_folders", "verify_package",
]  # fmt: skip
