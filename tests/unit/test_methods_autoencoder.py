from __future__ import annotations

from typing import Any

import pytest
import torch

from medgen.errors import InputError
from medgen.methods import build
from medgen.methods._erasing import erase_boxes
from medgen.methods._perception import Perception
from medgen.networks.features import read_extractor

SMALL: dict[str, Any] = {"spatial_dims": 2, "features": (4, 8), "latent_channels": 6}
DENSE: dict[str, Any] = {**SMALL, "image_size": (16, 24)}
IMAGE = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0))


def make(values: dict[str, Any], **extra: Any) -> Any:
    torch.manual_seed(0)
    return build("autoencoder", {**values, **extra})


@pytest.mark.parametrize(
    ("values", "shape"),
    [
        (SMALL, (2, 6, 4, 6)),
        ({**DENSE, "latent": "dense"}, (2, 6)),
        ({**DENSE, "architecture": "mlp", "hidden": (10, 5)}, (2, 6)),
        ({**DENSE, "architecture": "linear"}, (2, 6)),
    ],
    ids=["spatial", "dense", "mlp", "linear"],
)
def test_codes_have_their_shapes(values: dict[str, Any], shape: tuple[int, ...]) -> None:
    method = make(values).eval()
    code = method.encode(IMAGE)
    assert code.shape == shape
    assert torch.equal(method.latent(IMAGE), code.flatten(1))
    assert torch.equal(method.predict(IMAGE)["restored"], method.decode(code))


def test_the_mlp_is_symmetric() -> None:
    method = make({**DENSE, "architecture": "mlp", "hidden": (10, 5)})
    shapes = [tuple(w.shape) for name, w in method.named_parameters() if name.endswith("weight")]
    assert shapes == [tuple(reversed(shape)) for shape in reversed(shapes)]
    assert shapes[0] == (10, 16 * 24)


def test_a_linear_network_is_linear_around_the_mean() -> None:
    method = make({**DENSE, "architecture": "linear"})
    list(method.losses({"healthy": IMAGE}))
    list(method.losses({"healthy": IMAGE[:1]}))
    mean = (2 * IMAGE[0] + IMAGE[1]) / 3
    torch.testing.assert_close(method.mean, mean)
    a, b = (method.predict(mean + factor * (IMAGE[:1] - mean))["restored"] for factor in (1, 3))
    torch.testing.assert_close(b - mean, 3 * (a - mean))


def test_the_constraint_is_the_distance_of_two_codes() -> None:
    method = make(SMALL, constraint=0.5).eval()
    ((_, loss, parts),) = method.losses({"healthy": IMAGE})
    code = method.encode(IMAGE)
    copy = method.decode(code)
    distance = (method.encode(copy) - code).square().mean()
    torch.testing.assert_close(loss, (copy - IMAGE).square().mean() + 0.5 * distance)
    torch.testing.assert_close(parts["constraint"], distance.detach())


def test_erased_boxes_hold_one_value_each_and_leave_the_rest() -> None:
    image = torch.rand(20, 2, 12, 10, 8)
    torch.manual_seed(0)
    erased = erase_boxes(image)
    changed = (erased != image).flatten(1).float().mean(1)
    assert (changed > 0).all()
    assert changed.max() < 1
    for one, before in zip(erased, image, strict=True):
        assert torch.equal(one[0] != before[0], one[1] != before[1])
        assert len(torch.unique(one[one != before])) <= 3
        assert one.min() >= before.min()
        assert one.max() <= before.max()
    assert not torch.equal(erased, erase_boxes(image))


def test_context_is_copied_from_erased_images() -> None:
    method = make(SMALL, corruption="context").eval()
    torch.manual_seed(1)
    ((_, loss, _),) = method.losses({"healthy": IMAGE})
    torch.manual_seed(1)
    copy = method.decode(method.encode(erase_boxes(IMAGE)))
    torch.testing.assert_close(loss, (copy - IMAGE).square().mean())


def test_dropped_channels_are_fixed_and_averaged() -> None:
    method = make(SMALL, dropout=0.4, passes=3).eval()
    features = method.encoder(IMAGE)
    copies = []
    for before, after in method.masks.view(3, 2, 1, 8, 1, 1):
        assert ((before == 0) | (before == torch.tensor(1.0) / 0.6)).all()
        copies.append(
            method.decoder(method.from_latent(method.to_latent(features * before)) * after)
        )
    torch.testing.assert_close(method.predict(IMAGE)["restored"], sum(copies) / 3)
    assert not torch.allclose(copies[0], copies[1])
    assert method.masks.mean() == pytest.approx(1, abs=0.3)


def test_training_drops_other_channels_every_time() -> None:
    method = make(SMALL, dropout=0.4).eval()
    losses = [next(iter(method.losses({"healthy": IMAGE})))[1] for _ in range(2)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "extra",
    [
        {"decay": 1.0},
        {"architecture": "linear", "dropout": 0.1},
        {"architecture": "mlp", "image_size": None},
        {"architecture": "linear", "image_size": (16, 24, 16)},
        {"latent": "dense", "image_size": (16, 18)},
    ],
)
def test_settings_that_do_not_fit_are_refused(extra: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make(DENSE, **extra)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(16, 24), (16, 24, 2)])
def test_features_differ_where_images_do(channels: int, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    perception = Perception().eval()
    image = torch.rand(2, channels, *size)
    other = image.clone()
    other[1, :, 12:, 18:] += 0.5
    found = perception.distance_map(other, image)
    assert found.shape == (2, 1, *size)
    assert (found[0] == 0).all()
    assert found[1, 0, 12:, 18:].mean() > 3 * found[1, 0, :8, :12].mean()
    assert perception.distance(image, image) == 0
    assert perception.distance(other, image) > 0


def test_training_begins_with_the_weights_of_the_extractor() -> None:
    method = make(SMALL, perceptual=0.1)
    method.begin()
    _, weights = read_extractor("medgen-features")
    assert torch.equal(method.perception.network.conv1.weight, weights["conv1.weight"])
    before = {name: value.clone() for name, value in method.perception.state_dict().items()}
    ((_, loss, parts),) = method.train().losses({"healthy": IMAGE})
    loss.backward()
    after = method.perception.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert parts["features"] > 0
    assert method.encoder[0].conv.weight.grad.abs().sum() > 0
