"""Small real model packages for tests: real methods, real preparation, untrained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from medgen.package import ModelPackage, save_package
from medgen.phantoms import Phantom, brain
from medgen.scoring import Calibration

# The fixture `cli`: the words of a command line in, exit_code, stdout and stderr out.
Cli = Callable[..., Any]

SHAPE = (24, 28, 20)
SPACING_MM = 6.0


def phantom(seed: int = 0, lesion_radius_mm: float | None = 12.0) -> Phantom:
    """A head of 24 x 28 x 20 voxels, 6 mm wide."""
    return brain(
        SHAPE, spacing_mm=SPACING_MM, seed=seed, contrast="flair", lesion_radius_mm=lesion_radius_mm
    )


def calibration() -> Calibration:
    """A calibration with round numbers, as if 9 normal scans had been measured."""
    return Calibration(
        scan_scores=tuple(n / 10 for n in range(1, 10)),
        threshold=0.97,
        target_false_findings_per_scan=1.0,
        target_false_volume_mm3_per_scan=1000.0,
        minimum_volume_mm3=10.0,
        expected_false_findings_per_scan=0.5,
        expected_false_volume_mm3_per_scan=200.0,
    )


def save_intensity(folder: Path, **changes: Any) -> ModelPackage:
    """The baseline without weights, calibrated."""
    from medgen.methods import build

    values: dict[str, Any] = {
        "name": folder.name, "version": "1.0.0", "summary": "bright is abnormal",
        "preparation": {"spacing_mm": SPACING_MM, "normalisation": "equalise"},
        "inference": {"mode": "2d"}, "scoring": {"evidence": "score"},
        "contract": {"spatial_dims": [2, 3]}, "intended_use": "tests",
    }  # fmt: skip
    return save_package(
        folder, build("intensity", {"spatial_dims": 2}), card="# Intensity\n",
        golden=phantom().image, calibration=calibration(), **{**values, **changes},
    )  # fmt: skip


def save_restore(folder: Path, *, half_precision: bool = False, **changes: Any) -> ModelPackage:
    """A tiny untrained restoration network in 3-D, not calibrated."""
    import torch

    from medgen.methods import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build("restore", {"spatial_dims": 3, "features": (4, 4, 4, 4, 4)})
    values: dict[str, Any] = {
        "name": folder.name, "version": "0.1.0", "preparation": {"spacing_mm": SPACING_MM},
        "inference": {"mode": "3d"}, "contract": {"spatial_dims": [3]}, "intended_use": "tests",
    }  # fmt: skip
    return save_package(
        folder, network, card="# Restore\n", golden=phantom().image,
        half_precision=half_precision, **{**values, **changes},
    )  # fmt: skip


def save_generator(
    folder: Path, method: str = "gan", *, conditions: tuple[str, ...] = ("cancer", "benign"),
    labels: tuple[str, ...] = (), arrays: Any = None, **changes: Any,
) -> ModelPackage:  # fmt: skip
    """A tiny untrained generator; its colour images (grey with labels) are 16 pixels wide.

    Args:
        folder: Of the package.
        method: ``gan`` (latents z), ``stylegan2`` (styles w) or ``spade`` (annotated).
        conditions: Their names.
        labels: Names of the label values, for ``spade``.
        arrays: More files of arrays.
        **changes: Of the manifest; ``synthesis`` and ``config`` are merged into the usual ones.
    """
    import numpy as np
    import torch

    from medgen.methods import build

    config: dict[str, Any] = {
        "channels": 1 if labels else 3, "image_size": (16, 16), "conditions": len(conditions),
        "latent": 8,
        **{
            "gan": {"width": 8, "conditioning": "projection" if conditions else "none"},
            "stylegan2": {"style": 8, "mapping_layers": 2, "generator_base": 64,
                          "generator_max": 8, "critic_base": 64, "critic_max": 8},
            "spade": {"labels": max(2, len(labels)), "features": (8, 8), "modulation": 4,
                      "critic_features": (8,), "bank_size": 2 * max(1, len(conditions))},
        }[method],
        **changes.pop("config", {}),
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = build(method, config)
        # As after training: contrast, means that are not 0, label maps to bend.
        if method == "gan":
            for weights in network.parameters():
                weights.data.mul_(8 if weights.ndim > 1 else 1)
        if method == "stylegan2":
            network.w_mean.normal_()
        if method == "spade":
            size = (8, 1, *config["image_size"])
            number = torch.arange(8) % len(conditions) if conditions else None
            network.fill_bank(torch.randint(0, len(labels), size), number)
        network.eval()
    latent = np.random.default_rng(0).standard_normal((2, *network.latent_shape), np.float32)
    golden: dict[str, Any] = {"latent": latent}
    if conditions:
        golden["condition"] = np.zeros(2, np.int64)
    synthesis = {
        "condition_names": conditions,
        "label_names": labels,
        **changes.pop("synthesis", {}),
    }
    values: dict[str, Any] = {
        "name": folder.name, "version": "0.1.0", "task": "synthesize", "synthesis": synthesis,
        "intended_use": "tests", "summary": "noise",
    }  # fmt: skip
    return save_package(
        folder, network, card="# Generator\n", golden=golden, half_precision=True, arrays=arrays,
        **{**values, **changes},
    )  # fmt: skip


def save_features(folder: Path) -> ModelPackage:
    """A tiny untrained feature extractor."""
    import numpy as np
    import torch

    from medgen.methods import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = build("selfsup", {})
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)
    return save_package(
        folder, network.eval(), card="# Features\n", golden={"image": images},
        half_precision=True, name=folder.name, version="0.1.0", task="features",
        contract={"spatial_dims": [2, 3], "channels": 3}, intended_use="tests",
    )  # fmt: skip


# Of each restoration task: method, settings, what its manifest says, channels of its image
# (a translation gets the planes of its target besides).
RESTORERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "inpaint": ("inpaint_unet", {"features": (4, 4, 4, 4, 4)}, {}, 2),
    "super-resolve": ("srresnet", {"width": 4, "blocks": 1}, {"scales": (2.0, 4.0)}, 1),
    "denoise": ("dncnn", {"depth": 3, "width": 4}, {"noise": ("gaussian", "rician")}, 1),
    "translate": (
        "pix2pix",
        {"channels": 4, "generator": "unet", "features": (4, 4, 4, 4, 4), "adversarial_weight": 0},
        {"targets": ("t1", "t2", "flair")},
        1,
    ),
}


def save_restorer(
    folder: Path,
    task: str,
    *,
    method: Any = None,
    restoration: dict[str, Any] | None = None,
    dims: int = 2,
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> ModelPackage:
    """A tiny untrained restoration model, slice by slice or in 3-D, with a calibrated uncertainty.

    Args:
        folder: Of the package.
        task: One of ``RESTORERS``.
        method: A network to save instead.
        restoration: Keys of the manifest's block to change.
        dims: 2 or 3.
        config: Settings of the network to change.
        **changes: Of the manifest.
    """
    import numpy as np
    import torch

    from medgen.methods import build

    name, settings, block, channels = RESTORERS[task]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: Any = method or build(name, {"spatial_dims": dims, **settings, **(config or {})})
        network.eval()
    image = np.random.default_rng(0).uniform(0, 1, (channels, *(16,) * dims)).astype(np.float16)
    if task == "inpaint":
        image[1] = image[1] > 0.7
        image[0] *= 1 - image[1]
    spread = {"level": 0.9, "factor": 2.0, "coverage": 0.9, "data": "tests"}
    values: dict[str, Any] = {
        "name": folder.name, "version": "0.1.0", "task": task, "summary": f"{task}, untrained",
        "preparation": {"spacing_mm": None if task == "denoise" else SPACING_MM, "brain": "none",
                        "brightest": None},
        "inference": {"mode": f"{dims}d", "context_voxels": 8},
        "contract": {"spatial_dims": [2, 3]}, "intended_use": "tests",
        "restoration": {"spread": spread, **block, **(restoration or {})},
    }  # fmt: skip
    return save_package(
        folder, network, card=f"# {task}\n", golden={"image": image}, **{**values, **changes},
    )  # fmt: skip
