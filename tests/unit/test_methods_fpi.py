"""FPI shows the network patches of other images and asks how much of them there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medgen.errors import InputError
from medgen.methods import build

FEATURES = (4, 4, 8, 8, 8)


def make(name: str = "fpi", **extra: Any) -> Any:
    torch.manual_seed(0)
    return build(name, {"spatial_dims": 2, "features": FEATURES, **extra})


def shown(method: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network sees, and the loss."""
    seen = []
    handle = method.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    ((name, loss, _),) = method.losses(batch)
    handle.remove()
    assert name == "network"
    return seen[0], loss


def test_patches_come_from_the_next_image_of_the_batch() -> None:
    healthy = torch.stack([torch.full((1, 32, 32), float(n)) for n in range(4)])
    image, factor = make().pasted(healthy)
    assert factor.shape == (4, 1, 32, 32)
    torch.testing.assert_close(image, torch.lerp(healthy, healthy.roll(1, 0), factor))
    assert (factor.flatten(1).amax(1) > 0).all()


def test_cutpaste_stays_in_its_image() -> None:
    healthy = torch.stack([torch.full((1, 32, 32), float(10 * n)) for n in range(1, 4)])
    method = make("cutpaste_seg")
    image, factor = method.pasted(healthy)
    assert set(factor.unique().tolist()) == {0.0, 1.0}
    assert ((image - healthy).abs() < 0.1 + 0.1 * healthy).all()
    assert method.pasted(healthy[:1]).image.shape == (1, 1, 32, 32)


def test_the_loss_is_least_for_the_true_factor() -> None:
    method, healthy = make(), torch.rand(3, 1, 32, 32)
    batch = {"healthy": healthy, "mask": torch.ones(3, 1, 32, 32)}
    torch.manual_seed(3)
    factor = method.pasted(healthy).factor
    losses = {}
    for shift in (-0.02, 0.0, 0.02):
        torch.manual_seed(3)
        method.forward = lambda _, s=shift: torch.logit((factor + s).clamp(0.001, 0.999))
        losses[shift] = float(next(iter(method.losses(batch)))[1])
    assert losses[0.0] == min(losses.values())
    entropy = torch.nn.functional.binary_cross_entropy(factor.clamp(0.001, 0.999), factor)
    assert losses[0.0] == pytest.approx(float(entropy), rel=1e-4)


def test_only_the_foreground_counts() -> None:
    method = make().eval()
    healthy = torch.rand(2, 1, 32, 32)
    torch.manual_seed(1)
    _, whole = shown(method, {"healthy": healthy, "mask": torch.ones(2, 1, 32, 32)})
    torch.manual_seed(1)
    image, none = shown(method, {"healthy": healthy, "mask": torch.zeros(2, 1, 32, 32)})
    assert not torch.equal(image, healthy)
    assert float(none.detach()) == 0 < float(whole.detach())


def test_wrong_settings_are_named() -> None:
    with pytest.raises(InputError, match="two images in a batch"):
        make().pasted(torch.rand(1, 1, 32, 32))
    with pytest.raises(InputError, match="multiples of 4"):
        make(features=(4, 4, 6, 8, 8))
