from __future__ import annotations

from typing import Any

import pytest
import torch

from medgen.errors import InputError
from medgen.losses import kl_to_standard_normal
from medgen.methods import build
from medgen.methods._restoration_by_gradient import restore

SMALL = {"spatial_dims": 2, "features": (4, 8), "latent_channels": 6}
DENSE = {**SMALL, "latent": "dense", "image_size": (16, 24)}


def make(values: dict[str, Any], **extra: Any) -> Any:
    torch.manual_seed(0)
    return build("vae", {**values, **extra})


@pytest.mark.parametrize(
    ("values", "shape"), [(SMALL, (2, 6, 4, 6)), (DENSE, (2, 6))], ids=["spatial", "dense"]
)
def test_latent_shapes(values: dict[str, Any], shape: tuple[int, ...]) -> None:
    method = make(values)
    image = torch.rand(2, 1, 16, 24)
    mean, logvar = method.encode(image)
    assert mean.shape == logvar.shape == shape
    assert method.decode(mean).shape == image.shape


def test_prediction_uses_the_mean() -> None:
    method = make(SMALL).eval()
    image = torch.rand(2, 1, 16, 24)
    expected = method.decode(method.encode(image)[0])
    assert torch.equal(method.predict(image)["restored"], expected)


def test_the_loss_is_the_bound_of_the_paper() -> None:
    method = make(SMALL, beta=0.5, reduction="sum").eval()
    image = torch.rand(2, 1, 16, 24)
    torch.manual_seed(3)
    ((name, loss, parts),) = method.losses({"healthy": image})
    mean, logvar = method.encode(image)
    torch.manual_seed(3)
    decoded = method.decode(mean + (logvar / 2).exp() * torch.randn_like(mean))
    error = ((decoded - image) ** 2).sum() / 2 / 2  # half the square, mean over two images
    torch.testing.assert_close(loss, error + 0.5 * kl_to_standard_normal(mean, logvar))
    assert name == "autoencoder"
    torch.testing.assert_close(parts["reconstruction"], error.detach())


def test_training_samples() -> None:
    method = make(SMALL).eval()
    batch = {"healthy": torch.rand(2, 1, 16, 24)}
    losses = [next(iter(method.losses(batch)))[1] for _ in range(2)]
    assert losses[0] != losses[1]


def test_a_dense_network_pads_small_images_in_their_middle() -> None:
    method = make(DENSE).eval()
    image = torch.rand(1, 1, 12, 21)
    whole = torch.zeros(1, 1, 16, 24)
    whole[:, :, 2:14, 1:22] = image
    expected = method.predict(whole)["restored"][:, :, 2:14, 1:22]
    assert torch.equal(method.predict(image)["restored"], expected)


def test_a_dense_network_refuses_larger_images() -> None:
    with pytest.raises(InputError, match=r"up to \(16, 24\) voxels, got \(17, 24\)"):
        make(DENSE).predict(torch.rand(1, 1, 17, 24))


@pytest.mark.parametrize("size", [None, (16,), (16, 16, 16), (16, 18)])
def test_a_dense_network_needs_a_fitting_size(size: tuple[int, ...] | None) -> None:
    with pytest.raises(InputError, match=r"image_size|multiples of 4"):
        make(DENSE, image_size=size)


def test_extreme_posteriors_stay_finite() -> None:
    method = make(SMALL)
    torch.nn.init.constant_(method.to_posterior.conv.bias, 1e4)
    ((_, loss, _),) = method.losses({"healthy": torch.rand(2, 1, 16, 24)})
    assert torch.isfinite(loss)


def test_restoration_walks_downhill_as_far_as_it_says() -> None:
    image, goal = torch.rand(2, 1, 5, 6), torch.rand(2, 1, 5, 6)

    def energy(point: torch.Tensor) -> torch.Tensor:
        return (point - goal).square().sum() / 2

    with torch.inference_mode():
        found = restore(image.clone(), energy, steps=7, rate=0.2, smoothness=0.0)
    torch.testing.assert_close(found, goal + 0.8**7 * (image - goal))


def test_smoothness_keeps_small_places_and_lets_large_ones_change() -> None:
    image = torch.zeros(1, 1, 20, 20)
    image[..., 2:12, 2:12] = 1.0
    image[..., 16, 16] = 1.0

    def energy(point: torch.Tensor) -> torch.Tensor:
        return point.square().sum() / 2

    found = restore(image, energy, steps=300, rate=0.02, smoothness=0.3)
    assert found[..., 5:9, 5:9].max() < 0.4
    assert found[0, 0, 16, 16] > 0.7


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_restored_images_are_more_probable(reduction: str) -> None:
    method = make(SMALL, restoration_steps=10, reduction=reduction, restoration_rate=0.05).eval()
    image = torch.rand(2, 1, 16, 24)
    with torch.inference_mode():
        restored = method.predict(image)["restored"]
        assert method._bound(restored) < method._bound(image)
    assert method.to_posterior.conv.weight.grad is None


def test_the_gradient_is_that_of_finite_differences() -> None:
    method = make(SMALL, gradient_score=True, beta=0.3).double().eval()
    image = torch.rand(2, 1, 16, 24, dtype=torch.float64)
    score = method.predict(image)["score"]
    for place in ((0, 0, 3, 4), (1, 0, 10, 20)):
        up, down = image.clone(), image.clone()
        up[place] += 1e-4
        down[place] -= 1e-4
        # The bound is a mean over voxels and images; the slope is that of the sum.
        slope = (method._bound(up) - method._bound(down)) / 2e-4 * image.numel()
        residual = image[place] - method.decode(method.encode(image)[0])[place]
        torch.testing.assert_close(score[place], (slope * residual).abs(), rtol=1e-4, atol=1e-8)


def test_filling_in_erased_boxes_is_a_share_of_the_loss() -> None:
    image = torch.rand(2, 1, 16, 24)
    losses = {}
    for weight in (0.0, 0.25, 1.0):
        method = make(SMALL, context_weight=weight).eval()
        torch.manual_seed(5)
        _, losses[weight], parts = next(iter(method.losses({"healthy": image})))
    torch.testing.assert_close(losses[0.25], 0.75 * losses[0.0] + 0.25 * losses[1.0])
    torch.testing.assert_close(parts["context"], losses[1.0].detach())
