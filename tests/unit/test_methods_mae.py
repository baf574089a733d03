"""The masked autoencoder: what is hidden stays hidden, and what is measured."""

from __future__ import annotations

import pytest
import torch

from medgen.errors import InputError
from medgen.methods import build
from medgen.methods.mae import _enlarged, _Norm


def make(dims=2, **extra):
    torch.manual_seed(0)
    return build("mae", {"spatial_dims": dims, "features": (8, 12), **extra})


def half(dims):
    """Every second patch of a grid of four along each axis."""
    axes = torch.meshgrid(*[torch.arange(4)] * dims, indexing="ij")
    return (sum(axes) % 2).float()[None, None]


@pytest.mark.parametrize("dims", [2, 3])
def test_nothing_in_a_hidden_patch_changes_what_is_drawn(dims):
    method, shown = make(dims).eval(), half(dims)
    image = torch.rand(2, 1, *[16] * dims)
    hidden = 1 - _enlarged(shown, 4)
    other = torch.where(hidden > 0, torch.rand_like(image) * 9, image)
    with torch.inference_mode():
        assert torch.equal(method(image, shown), method(other, shown))
        assert not torch.equal(method(image, shown), method(1 - image, shown))


@pytest.mark.parametrize("dims", [2, 3])
def test_features_are_zero_where_the_image_is_hidden(dims):
    method, shown = make(dims).eval(), half(dims)
    with torch.inference_mode():
        for depth, features in enumerate(method.encode(torch.rand(1, 1, *[16] * dims), shown)):
            hidden = _enlarged(shown, 2 >> depth) == 0
            assert (features.abs().amax(1, keepdim=True)[hidden] == 0).all()
            assert (features.abs().amax(1, keepdim=True)[~hidden] > 0).all()


def test_restored_voxels_never_depend_on_themselves():
    """The gradient of a restored voxel is zero in its own patch."""
    method = make(parts=3).eval()
    image = torch.rand(1, 1, 16, 16, requires_grad=True)
    restored = method.predict(image)["restored"]
    restored[0, 0, 5, 9].backward()
    assert (image.grad[0, 0, 4:8, 8:12] == 0).all()
    assert (image.grad != 0).any()


def test_the_loss_is_the_mean_over_hidden_voxels_inside_the_mask():
    method, image = make(), torch.rand(3, 1, 16, 16)
    mask = (torch.rand(3, 1, 16, 16) > 0.5).float()
    torch.manual_seed(5)
    _, loss, _ = next(method.losses({"healthy": image, "mask": mask}))
    torch.manual_seed(5)
    ranks = torch.rand(3, 16).argsort(1).argsort(1)
    shown = (ranks < 16 // method.config.parts).float().reshape(3, 1, 4, 4)
    assert (shown.flatten(1).sum(1) == 5).all()
    counted = (mask * (1 - _enlarged(shown, 4))).bool()
    expected = (method(image, shown) - image)[counted].square().mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_with_nothing_hidden_normalisation_is_torchs_group_norm():
    norm, value = _Norm(6), torch.randn(2, 6, 5, 4)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = torch.nn.functional.group_norm(value, 1, norm.weight, norm.bias)
    assert torch.allclose(norm(value, torch.ones(1, 1, 5, 4)), expected, atol=1e-5)


def test_too_few_patches_are_refused():
    method = make(parts=3)
    with pytest.raises(InputError, match="needed are 3"):
        method.predict(torch.rand(1, 1, 4, 8))
