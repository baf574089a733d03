"""The self-supervised feature extractor: its loss, its views, and that it learns to tell images."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor

from medgen.errors import InputError
from medgen.methods import build
from medgen.methods import selfsup as module

SMALL = {"view_size": 32, "widths": (8, 8, 16, 16), "dimension": 16, "projector": 32}


def make(**extra):
    torch.manual_seed(0)
    return build("selfsup", {**SMALL, **extra})


def pictures(count: int = 24, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth coloured noise: each unlike the others, the same for every run."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 6, 6, generator=random) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(-1, 1)


def test_the_shipped_size_is_small():
    method = build("selfsup", {})
    assert sum(p.numel() for p in method.network.parameters()) <= 900_000
    assert method.dimension == 64


def test_losses_are_those_of_the_paper():
    """Against the definitions, written with loops over dimensions."""
    torch.manual_seed(0)
    z = torch.randn(12, 5).double()
    spread = [max(0.0, 1 - float(torch.sqrt(z[:, j].var() + module.EPSILON))) for j in range(5)]
    assert float(module._spread_loss(z)) == pytest.approx(sum(spread) / 5)
    shared = sum(
        float(torch.cov(torch.stack([z[:, i], z[:, j]]))[0, 1]) ** 2
        for i in range(5)
        for j in range(5)
        if i != j
    )
    assert float(module._shared_loss(z)) == pytest.approx(shared / 5)


def test_equal_features_cost_the_variance_and_no_invariance():
    method = make()
    for weight in method.projector.parameters():
        weight.data.zero_()
    _, loss, parts = next(method.losses({"image": pictures()}))
    assert float(parts["invariance"]) == 0
    assert float(parts["variance"]) == pytest.approx(2 * (1 - module.EPSILON**0.5))
    assert float(loss.detach()) == pytest.approx(25 * float(parts["variance"]))


def test_views_have_the_size_and_range_and_differ_from_each_other():
    method, image = make(), pictures(size=48)
    torch.manual_seed(1)
    first, second = method.view(image), method.view(image)
    assert first.shape == (24, 3, 32, 32)
    assert first.min() >= -1 and first.max() <= 1
    assert torch.isfinite(first).all()
    assert ((first - second).abs().mean((1, 2, 3)) > 0.01).all()
    torch.manual_seed(1)
    assert torch.equal(first, method.view(image)), "views must depend on torch's generator alone"


def test_views_and_losses_do_not_lose_digits_under_autocast():
    method, image = make(), pictures()
    torch.manual_seed(1)
    plain = method.view(image)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method.view(image), plain)
        _, loss, _ = next(method.losses({"image": image}))
    assert loss.dtype == torch.float32


def test_a_view_that_changes_nothing_is_the_image():
    """The geometry: with a full crop and no colour, views are turned by quarters or so."""
    image = pictures(size=32)
    torch.manual_seed(0)
    placed = module._placed(image, 32, 1.0)
    assert float((placed.mean((1, 2, 3)) - image.mean((1, 2, 3))).abs().max()) < 0.25
    assert torch.equal(module._coloured(image, 0.0), image) or torch.allclose(
        module._coloured(image, 0.0), image, atol=1e-6
    )
    assert torch.allclose(module._sharpened(image, 0.0), image)


def test_views_of_each_image_are_drawn_on_their_own():
    image = pictures(1).expand(16, -1, -1, -1)
    torch.manual_seed(0)
    views = make().view(image)
    distance = torch.cdist(views.flatten(1), views.flatten(1))
    assert float(distance[~torch.eye(16, dtype=torch.bool)].min()) > 0.5


def test_it_learns_to_tell_images_apart():
    method, image = make(learning_rate=3e-3, colour=0.0, smallest_crop=0.8), pictures(48)
    optimizer = method.optimizers()["features"]
    before = method.eval().validate({"image": image})
    torch.manual_seed(0)
    losses = []
    for _ in range(40):
        _, loss, _ = next(method.train().losses({"image": image}))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    after = method.eval().validate({"image": image})
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assert after["retrieval"] > max(5 / 48, before["retrieval"])
    assert after["spread"] > before["spread"]


def test_features_are_repeatable_and_need_no_projector():
    method = make().eval()
    image = pictures(4, size=40)
    before, state = image.clone(), copy.deepcopy(method.state_dict())
    with torch.inference_mode():
        first = method.features(image)
        method.projector = None
        again = method.features(image)
        alone = method.features(image[1:2])
    assert first.shape == (4, 16)
    assert torch.equal(first, again) and torch.equal(image, before)
    assert torch.allclose(first[1:2], alone, atol=1e-5)
    assert all(torch.equal(state[name], value) for name, value in method.state_dict().items())
    with pytest.raises(InputError, match="packaged without"):
        next(method.losses({"image": image}))


@pytest.mark.parametrize("shape", [(2, 3, 31, 40), (2, 1, 32, 32), (2, 3, 32, 32, 32)])
def test_images_it_cannot_see_are_refused(shape):
    with pytest.raises(InputError, match="at least 32"):
        make().features(torch.zeros(shape))


def test_the_configuration_survives_json():
    config = make().config
    again = type(config).model_validate(json.loads(config.model_dump_json()))
    assert again == config
    assert all(field.description for field in type(config).model_fields.values())
