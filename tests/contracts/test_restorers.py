"""What every method that restores or translates an image promises, in 2-D, 2.5-D and 3-D.

These are the methods of ``inpaint``, ``super-resolve``, ``denoise`` and ``translate``: they have
``predict``, and ``training_only`` parts. A new one adds a line to ``CASES``.
"""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F
from training_step import step

from medgen.errors import InputError
from medgen.methods import _restoring, build, method_class
from medgen.phantoms import brain

EDGE = {2: 32, 3: 16}  # voxels
FIELD_MM = 192.0
COUNT = 4


@dataclass(frozen=True)
class Case:
    """A small configuration of a method, and what it can learn in a few seconds.

    Attributes:
        kind: inpaint, super_resolve, denoise, translate, unpaired or domains: its batches.
        settings: Of the method; a rate that learns four images quickly.
        steps: What it is trained for.
        left: Largest error afterwards, as a share of the error before (of the values' deviation
            for inpaint and translate); None if it cannot be measured: unpaired.
        dims: 2 and 3, unless the method is for one only.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int = 60
    left: float | None = 0.7
    dims: tuple[int, ...] = (2, 3)


FEATURES = (4, 8, 8, 16, 16)
CRITIC = {"critic_width": 4, "critic_stages": 2}
# Of the methods that translate.
SMALL: dict[str, Any] = {"width": 4, "blocks": 2}
PATCHES: dict[str, Any] = {"critic_width": 4, "critic_layers": 1}
# Name of a method or variant, and whatever tells two cases of it apart.
CASES: dict[str, Case] = {
    "inpaint_unet": Case("inpaint", {"features": FEATURES, "learning_rate": 3e-3}),
    "context_encoder": Case(
        "inpaint",
        {"features": (8, 16, 16, 16), "bottleneck": 16, "critic_features": (4, 8), "reach": 2}
        | {"learning_rate": 1e-2},
        steps=120,
    ),
    "gated_conv": Case(
        "inpaint",
        {"width": 4, "critic_features": (4, 8, 8), "adversarial_weight": 0.01}
        | {"learning_rate": 3e-3},
    ),
    "ip_medgan": Case(
        "inpaint",
        {"features": FEATURES, "critic_features": (4, 8), "local_size": 12, "learning_rate": 3e-3},
    ),
    # Half of what the phantoms lose is noise, which no network can bring back.
    "srresnet": Case("super_resolve", {"blocks": 2, "width": 16, "learning_rate": 3e-3}, left=0.95),
    "srresnet batch": Case(
        "super_resolve",
        {"blocks": 2, "width": 16, "norm": "batch", "learning_rate": 3e-3},
        left=0.95,
        dims=(2,),
    ),
    "srgan": Case(
        "super_resolve",
        {"blocks": 2, "width": 16, "pixel_weight": 1.0, "learning_rate": 3e-3} | CRITIC,
        left=0.95,
    ),
    "esrgan": Case(
        "super_resolve",
        {"blocks": 1, "width": 8, "growth": 8, "pixel_weight": 1.0, "learning_rate": 3e-3} | CRITIC,
        left=0.95,
    ),
    "rrdb": Case(
        "super_resolve",
        {"blocks": 1, "width": 8, "growth": 8, "learning_rate": 3e-3},
        left=0.95,
    ),
    "dncnn": Case("denoise", {"depth": 5, "width": 12, "learning_rate": 3e-3}),
    "residual_unet": Case("denoise", {"features": FEATURES, "learning_rate": 3e-3}),
    "denoising_ae": Case(
        "denoise", {"features": (8, 16, 16, 16, 32), "learning_rate": 1e-2}, 120, left=1.0
    ),
    "noise2void": Case(
        "denoise", {"features": FEATURES, "blind_share": 0.1, "learning_rate": 1e-2}, left=0.9
    ),
    "pix2pix": Case(
        "translate",
        {"features": (8, 16, 16), "dropout": 0.0, "generator_rate": 3e-3} | PATCHES,
    ),
    "pix2pix unet": Case(
        "translate", {"generator": "unet", "features": FEATURES, "generator_rate": 3e-3} | PATCHES
    ),
    "pix2pix resnet": Case(
        "translate",
        {"generator": "resnet", "fold": 2, "generator_rate": 3e-3} | SMALL | PATCHES,
        left=0.8,
    ),
    "unet_l1": Case(
        "translate", {"generator": "unet", "features": FEATURES, "generator_rate": 3e-3}
    ),
    "cyclegan": Case("unpaired", {"pool_size": 2} | SMALL | PATCHES, left=None),
    "dualgan": Case("unpaired", SMALL | PATCHES, left=None),
    "discogan": Case("unpaired", SMALL | PATCHES, left=None),
    "uaggan": Case("unpaired", SMALL | PATCHES, left=None),
    "uaggan paired": Case(
        "translate",
        {"paired": True, "generator_rate": 3e-3} | SMALL | PATCHES,
        left=0.9,
    ),
    "cut": Case("unpaired", {"patches": 16, "head_width": 8} | SMALL | PATCHES, left=None),
    "stargan": Case("domains", {"channels": 3, "critic_steps": 2} | SMALL | PATCHES, left=None),
}


@cache
def batch_of(kind: str, dims: int) -> dict[str, Tensor]:
    """Heads as the sources of data give them for a kind of method; one input slice."""

    def heads(contrast: str) -> Tensor:
        grid = {"shape": (EDGE[dims],) * dims, "spacing_mm": FIELD_MM / EDGE[dims]}
        images = [brain(**grid, seed=seed, contrast=contrast) for seed in range(COUNT)]
        return torch.stack([torch.as_tensor(head.image.voxels[0] / 1000) for head in images])

    generator = torch.Generator().manual_seed(0)
    first, second = heads("t1").float()[:, None], heads("t2").float()[:, None]
    ones = torch.ones_like(first)
    if kind == "inpaint":
        hole = torch.zeros_like(first)
        a, b = EDGE[dims] // 4, EDGE[dims] // 2
        hole[(..., *(slice(a, b),) * dims)] = 1
        filled = torch.lerp(first, first[hole > 0].mean(), hole)
        return {"image": torch.cat([filled, hole], 1), "target": first, "mask": hole}
    if kind == "super_resolve":
        pool, mode = (F.avg_pool2d, "bilinear") if dims == 2 else (F.avg_pool3d, "trilinear")
        blurred = F.interpolate(pool(first, 2), scale_factor=2.0, mode=mode)
        return {"image": blurred, "target": first, "mask": ones}
    if kind == "denoise":
        noise = 0.2 * torch.randn(first.shape, generator=generator)
        return {"image": first + noise, "target": first, "mask": ones}
    if kind == "translate":
        return {"image": first, "target": second, "mask": ones}
    if kind == "unpaired":
        return {"image": first, "target": second.roll(1, 0), "mask": ones}
    assert kind == "domains"
    image = torch.stack([first[0], second[1], first[2], second[3]])
    domain, wanted = torch.tensor([0, 1, 0, 1]), torch.tensor([1, 0, 0, 1])
    return {"image": image, "mask": ones, "domain": domain, "wanted": wanted}


def with_slices(batch: dict[str, Tensor], slices: int) -> dict[str, Tensor]:
    """The batch for a method that sees neighbouring slices: they are shifted a little."""
    beside = [batch["image"].roll(shift, -1) for shift in range(-(slices // 2), slices // 2 + 1)]
    return {**batch, "image": torch.cat(beside, 1)}


def to_predict(method: Any, batch: dict[str, Tensor]) -> Tensor:
    """What ``predict`` takes: after the image the one-hot planes of the domain it should get."""
    image = batch["image"]
    planes = method.channels * method.input_slices - image.shape[1]
    if planes:
        assert "wanted" in batch
        chosen = F.one_hot(batch["wanted"], planes).float()
        chosen = chosen[(..., *(None,) * (image.ndim - 2))].expand(-1, -1, *image.shape[2:])
        image = torch.cat([image, chosen], 1)
    return image.clone()


def make(name: str, dims: int, **extra: Any) -> Any:
    torch.manual_seed(0)
    values = {"spatial_dims": dims, **CASES[name].settings}
    return build(name.split()[0], values | extra)


every = pytest.mark.parametrize(
    ("name", "dims"),
    [
        pytest.param(name, dims, id=f"{name}-{dims}d")
        for name, dims in itertools.product(CASES, (2, 3))
        if dims in CASES[name].dims
    ],
)


def test_every_case_is_a_restorer() -> None:
    """That every registered one is a case is tested in ``test_methods.py``."""
    for name in CASES:
        cls = method_class(name.split()[0])
        assert hasattr(cls, "predict") and hasattr(cls, "training_only"), name


@every
def test_it_has_what_inference_asks_for(name: str, dims: int) -> None:
    method = make(name, dims)
    assert method.spatial_dims == dims
    assert method.divisor >= 1
    assert method.input_slices == 1
    assert method.channels >= 1
    assert method.out_channels >= 1
    assert all(hasattr(method, part) for part in method.training_only)
    assert next(iter(method.Config.model_fields)) == "spatial_dims"
    assert all(setting.description for setting in method.Config.model_fields.values())


@every
def test_one_step_moves_every_parameter(name: str, dims: int) -> None:
    method = make(name, dims)
    before = {key: weight.detach().clone() for key, weight in method.named_parameters()}
    optimizers = method.optimizers()
    owned = [id(w) for o in optimizers.values() for g in o.param_groups for w in g["params"]]
    assert sorted(owned) == sorted(id(w) for w in method.parameters() if w.requires_grad)
    step(method, optimizers, batch_of(CASES[name].kind, dims))
    after = dict(method.named_parameters())
    still = {key for key, old in before.items() if torch.equal(old, after[key])}
    assert not {key for key in still if after[key].requires_grad}


@every
def test_training_goes_on_exactly_from_a_saved_state(name: str, dims: int) -> None:
    """All that training remembers is in buffers, and all its chance is torch's generator."""
    batch = batch_of(CASES[name].kind, dims)
    first, second = make(name, dims), make(name, dims)
    optimizers, others = first.optimizers(), second.optimizers()
    torch.manual_seed(1)
    step(first, optimizers, batch)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for key, optimizer in optimizers.items():
        others[key].load_state_dict(copy.deepcopy(optimizer.state_dict()))
    torch.manual_seed(2)
    expected = step(first, optimizers, batch)
    torch.manual_seed(2)
    assert step(second, others, batch) == expected


@every
def test_prediction_is_repeatable_and_touches_nothing(name: str, dims: int) -> None:
    method = make(name, dims).eval()
    image = to_predict(method, batch_of(CASES[name].kind, dims))
    untouched = image.clone()
    state = {key: value.clone() for key, value in method.state_dict().items()}
    with torch.inference_mode():
        first = method.predict(image)
        torch.manual_seed(1)
        second = method.predict(image)
        alone = method.predict(image[1:2])
    assert torch.equal(image, untouched), "the input was changed"
    for key, old in state.items():
        assert torch.equal(old, method.state_dict()[key]), f"prediction changed {key}"
    for key, output in first.items():
        assert torch.equal(output, second[key])
        assert output.untyped_storage().data_ptr() != image.untyped_storage().data_ptr()
        assert torch.allclose(output[1:2], alone[key], atol=1e-5), "depends on the batch"


@pytest.mark.parametrize("name", ["inpaint_unet", "srresnet", "rrdb", "dncnn", "residual_unet"])
def test_the_first_layer_learns_from_the_image_and_not_from_the_spread(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that starts near its input changes little at first, and predicts spreads at once:

    these drowned what the image had to teach, and a denoiser that saw faint noise never began.
    """

    def gradient(weight: float) -> Tensor:
        monkeypatch.setattr(_restoring, "SPREAD_WEIGHT", weight)
        method = make(name, 2)
        ((_, loss, _),) = method.losses(batch_of(CASES[name].kind, 2))
        loss.backward()
        found = next(method.network.parameters()).grad
        assert found is not None
        return found

    with_spread, without = gradient(_restoring.SPREAD_WEIGHT), gradient(0.0)
    assert (with_spread - without).norm() < 0.01 * without.norm()


@every
@pytest.mark.parametrize("slices", [1, 3])
def test_outputs_have_the_right_shape_and_range(name: str, dims: int, slices: int) -> None:
    cls = method_class(name.split()[0])
    if slices > 1 and (dims == 3 or "input_slices" not in cls.Config.model_fields):
        pytest.skip("a volume has all its slices")
    batch = with_slices(batch_of(CASES[name].kind, dims), slices)
    method = make(name, dims, **({"input_slices": slices} if slices > 1 else {}))
    step(method, method.optimizers(), batch)
    image = to_predict(method.eval(), batch)
    image = torch.cat([image, image], dim=2)  # sizes need not be equal, nor those of training
    with torch.inference_mode():
        outputs = method.predict(image)
    assert "output" in outputs
    assert set(outputs) <= {"output", "spread"}
    for output in outputs.values():
        assert output.shape == (COUNT, method.out_channels, *image.shape[2:])
        assert output.dtype == torch.float32
        assert torch.isfinite(output).all()
    if "spread" in outputs:
        assert (outputs["spread"] > 0).all()


@every
def test_it_predicts_the_same_without_what_only_training_needs(name: str, dims: int) -> None:
    method = make(name, dims)
    batch = batch_of(CASES[name].kind, dims)
    step(method, method.optimizers(), batch)
    image = to_predict(method.eval(), batch)
    with torch.inference_mode():
        before = method.predict(image)
        for part in method.training_only:
            setattr(method, part, None)
        after = method.predict(image)
    assert all(torch.equal(before[key], after[key]) for key in before)


@every
def test_saving_and_loading_is_exact(name: str, dims: int) -> None:
    method = make(name, dims)
    batch = batch_of(CASES[name].kind, dims)
    step(method, method.optimizers(), batch)
    stored = save({key: value.contiguous() for key, value in method.state_dict().items()})
    again = make(name, dims)
    with torch.no_grad():
        for weight in again.parameters():
            weight.add_(1)
    again.load_state_dict(load(stored))
    image = to_predict(method, batch)
    with torch.inference_mode():
        before, after = method.eval().predict(image), again.eval().predict(image)
    assert all(torch.equal(before[key], after[key]) for key in before)


@every
def test_the_configuration_survives_json(name: str, dims: int) -> None:
    config = make(name, dims).config
    text = json.dumps(config.model_dump(mode="json"))
    cls = method_class(name.split()[0])
    assert cls.Config.model_validate(json.loads(text)) == config
    with pytest.raises(ValueError, match="colour"):
        cls.Config.model_validate({**json.loads(text), "colour": 1})


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        # Volumes take seconds each, and learn by the same code.
        pytest.param(name, d, id=f"{name}-{d}d", marks=pytest.mark.slow if d == 3 else ())
        for name, case in CASES.items()
        for d in case.dims
    ],
)
def test_it_learns_a_few_phantoms(name: str, dims: int) -> None:
    case = CASES[name]
    if case.left is None:
        pytest.skip("has no truth to be compared with")
    method, batch = make(name, dims), batch_of(case.kind, dims)
    optimizers = method.optimizers()
    torch.manual_seed(0)
    for _ in range(case.steps):
        step(method, optimizers, batch)
    with torch.inference_mode():
        output = method.eval().predict(to_predict(method, batch))["output"]
    target, inside = batch["target"], batch["mask"].bool()
    start = batch["image"] if case.kind in {"super_resolve", "denoise"} else target[inside].mean()
    before = (start - target)[inside].square().mean().sqrt()
    assert (output - target)[inside].square().mean().sqrt() < case.left * before


@every
def test_a_size_it_cannot_divide_is_refused_with_the_one_to_pad_to(name: str, dims: int) -> None:
    method = make(name, dims).eval()
    size = (EDGE[dims] - 1,) * dims
    image = torch.rand(1, method.channels, *size)
    if method.divisor == 1:
        assert all(output.shape[2:] == size for output in method.predict(image).values())
        return
    padded = tuple(-(-edge // method.divisor) * method.divisor for edge in size)
    with pytest.raises(InputError) as caught:
        method.predict(image)
    assert str(padded) in str(caught.value)
    assert str(size) in str(caught.value)
