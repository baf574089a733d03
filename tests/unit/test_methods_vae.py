from __future__ import annotations

from typing import Any

import pytest
import torch

from medgen.errors import InputError
from medgen.losses import kl_to_standard_normal
from medgen.methods import build

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
