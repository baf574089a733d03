"""What tasks that run networks share: slow imports, full GPUs, and telling how far the work is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from typing import TypeVar

from medgen.errors import InputError

Result = TypeVar("Result")
# Told of the work done so far, and of all there is.
Progress = Callable[[int, int], None]


@contextmanager
def importing(*modules: str) -> Iterator[None]:
    """Import slow libraries beside the block: decompressing leaves the interpreter free for it."""

    def load() -> None:
        for module in modules:
            import_module(module)

    with ThreadPoolExecutor(1) as pool:
        imported = pool.submit(load)
        yield
        imported.result()


def on_device(
    run: Callable[[str], Result], device: str, wish: str
) -> tuple[Result, str, tuple[str, ...]]:
    """Run a model; with ``auto``, a GPU that is too small is replaced by the CPU and noted.

    Args:
        run: Runs the model on the device it is given.
        device: The device to use.
        wish: What the user asked for.

    Returns:
        The result, the device it was computed on, and what was done otherwise than wished.

    Raises:
        InputError: The device has too little memory, and was asked for.
    """
    import torch

    try:
        return run(device), device, ()
    except torch.cuda.OutOfMemoryError as error:
        if wish != "auto":
            msg = f"{device} has too little free memory for this scan"
            raise InputError(msg, "Use --device cpu, or free memory on the GPU.") from error
    # Outside the handler, so that the failed attempt's tensors are gone.
    torch.cuda.empty_cache()
    return run("cpu"), "cpu", (f"{device} ran out of memory; the CPU was used instead",)
