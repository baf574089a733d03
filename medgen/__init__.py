"""Learn what normal looks like in a medical image, and show what is not.

>>> import medgen
>>> detection = medgen.detect_anomalies("scan.nii.gz")  # doctest: +SKIP
>>> detection.save("out")  # doctest: +SKIP

Importing medgen loads neither torch nor the file formats; each name below is loaded when used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medgen.errors import GeometryError, InputError, LeakageError, MedgenError, PackageError
    from medgen.io import read
    from medgen.package import list_packages, load_package
    from medgen.tasks.denoise import denoise
    from medgen.tasks.detect import Detection, detect_anomalies
    from medgen.tasks.inpaint import inpaint
    from medgen.tasks.restoration import Restoration
    from medgen.tasks.super_resolve import super_resolve
    from medgen.tasks.synthesize import Synthesis, synthesize
    from medgen.tasks.translate import translate
    from medgen.volume import Geometry, Volume

try:
    __version__ = version("medgen")
except PackageNotFoundError:  # run from a source folder that was not installed
    __version__ = "0+unknown"

# Where each public name lives.
_HOME = {
    "Detection": "medgen.tasks.detect",
    "Geometry": "medgen.volume",
    "GeometryError": "medgen.errors",
    "InputError": "medgen.errors",
    "LeakageError": "medgen.errors",
    "MedgenError": "medgen.errors",
    "PackageError": "medgen.errors",
    "Restoration": "medgen.tasks.restoration",
    "Synthesis": "medgen.tasks.synthesize",
    "Volume": "medgen.volume",
    "denoise": "medgen.tasks.denoise",
    "detect_anomalies": "medgen.tasks.detect",
    "inpaint": "medgen.tasks.inpaint",
    "list_packages": "medgen.package",
    "load_package": "medgen.package",
    "read": "medgen.io",
    "super_resolve": "medgen.tasks.super_resolve",
    "synthesize": "medgen.tasks.synthesize",
    "translate": "medgen.tasks.translate",
}

__all__ = [
    "Detection",
    "Geometry",
    "GeometryError",
    "InputError",
    "LeakageError",
    "MedgenError",
    "PackageError",
    "Restoration",
    "Synthesis",
    "Volume",
    "__version__",
    "denoise",
    "detect_anomalies",
    "inpaint",
    "list_packages",
    "load_package",
    "read",
    "super_resolve",
    "synthesize",
    "translate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module 'medgen' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
