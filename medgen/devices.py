"""Which processor to compute on. A wish that cannot be met is an error, never a silent change."""

from __future__ import annotations

import re
import shutil
import subprocess

from medgen.errors import InputError

CHOICES = "auto, cpu, cuda, cuda:N or mps"


def check_device_name(device: str) -> None:
    """Refuse a misspelt device without importing torch.

    Raises:
        InputError: ``device`` is none of the accepted names.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
        raise InputError(f"unknown device {device!r}; expected {CHOICES}")


def resolve_device(device: str) -> str:
    """The torch device to use: ``auto`` takes the first CUDA device, else the CPU.

    Apple's ``mps`` is used only when asked for: it lacks some 3-D operations.

    Raises:
        InputError: The device is unknown, or asked for and absent.
    """
    check_device_name(device)
    import torch

    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if device == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps was asked for, but torch finds no Apple GPU", _HINT)
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(device.partition(":")[2] or 0)
        if count == 0:
            msg = f"--device {device} was asked for, but torch {torch.__version__} finds no CUDA"
            raise InputError(msg, _HINT)
        if index >= count:
            msg = f"--device {device} was asked for, but there are only {count} CUDA devices"
            raise InputError(msg, f"They are numbered from 0 to {count - 1}.")
        return f"cuda:{index}"
    return device


_HINT = "Use --device cpu, or --device auto to take what is there. `medgen info` lists devices."


def visible_gpus() -> list[str]:
    """Names of the NVIDIA GPUs the driver reports; empty without a driver. Does not need torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        result = subprocess.run(  # noqa: S603 - a fixed command found on the PATH
            [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]
