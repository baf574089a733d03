"""What every method that makes images from noise promises. See CONTRIBUTING.md.

Each row of ``SMALL`` is a method or variant with settings that make it tiny; a second word names a
combination. Rows run in 2-D, and in 3-D where the method has it.
"""

from __future__ import annotations

import copy
import functools
import json
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from medgen.errors import InputError
from medgen.methods import REGISTRY, VARIANTS, build, method_class

EDGE = {2: 16, 3: 8}  # voxels
BATCH = 8
FAST = {"generator_rate": 2e-3, "critic_rate": 2e-3}
GAN = {"width": 8, "latent": 8, **FAST}
STYLE = {
    "generator_base": 128, "generator_max": 8, "critic_base": 128, "critic_max": 8, "style": 8,
    "latent": 8, "mapping_layers": 2, "conditions": 2, "r1_interval": 1, "path_length_interval": 1,
}  # fmt: skip
SPADE = {
    "features": (8, 8), "modulation": 4, "critic_features": (8, 8), "mask_features": (4, 8),
    "latent": 4, "labels": 3, "bank_size": 8, "mask_latent": 4, "conditions": 2, **FAST,
}  # fmt: skip
VAEGAN = {"width": 8, "latent": 8, "learning_rate": 2e-3}
SMALL: dict[str, dict[str, Any]] = {
    "gan": GAN,
    "gan mlp": {**GAN, "architecture": "mlp", "width": 32},
    "gan saturating": {**GAN, "loss": "saturating", "instance_noise": 0.1},
    "gan relativistic": {**GAN, "loss": "relativistic_average", "spectral_norm": "critic"},
    "gan dragan": {**GAN, "penalty": "dragan", "critic_norm": "layer", "penalty_weight": 1.0},
    "gan r1": {
        **GAN,
        "penalty": "r1",
        "critic_norm": "none",
        "penalty_every": 2,
        "penalty_weight": 1.0,
        "augmentation": "adaptive",
        "augment_speed": 100,
    },
    "gan diffaugment": {**GAN, "augmentation": "diffaugment", "augment_with": ("translation",)},
    "dcgan": GAN,
    "lsgan": GAN,
    "wgan": {**GAN, "n_critic": 2, "clip": 0.1},
    "wgan_gp": {**GAN, "n_critic": 2, "penalty_weight": 1.0},
    "hinge": GAN,
    "cgan": {**GAN, "conditions": 2},
    "acgan": {**GAN, "conditions": 2},
    "projection_gan": {**GAN, "n_critic": 2, "conditions": 2},
    "progan": {"base": 64, "largest": 8, "latent": 8, "conditions": 2, "images_per_phase": BATCH},
    "stylegan2": STYLE,
    "stylegan2 adaptive": {**STYLE, "augmentation": "adaptive"},
    "pathologygan": STYLE,
    "spade": {**SPADE, "mask_sampler": "deform"},
    "spade vae": {**SPADE, "mask_sampler": "vae"},
    "spade unconditional": {**SPADE, "conditions": 0},
    "vaegan": {**VAEGAN, "conditions": 2},
    "vaegan unconditional": VAEGAN,
}
LATE = {"progan": 12}  # steps until all layers have grown and take part
# No gradient while all outputs lie within the hinge's margins, as they do at first.
WITHIN_MARGINS = {f"critic.critics.{scale}.last.bias" for scale in (0, 1)}
# Steps to learn one brightness and settings to do so quickly, where the usual ones are too slow.
QUICK_STYLE = {
    "learning_rate": 5e-3, "critic_rate": 5e-3, "path_length_weight": 0.0, "r1_interval": 4
}  # fmt: skip
QUICK_SPADE = {"generator_rate": 4e-3, "critic_rate": 4e-3}
LEARN: dict[str, tuple[int, dict[str, Any]]] = {
    "progan": (
        150,
        {
            "image_size": (8, 8),
            "conditions": 0,
            "images_per_phase": 0,
            "learning_rate": 4e-3,
            "penalty_weight": 1.0,
        },
    ),
    "stylegan2": (100, QUICK_STYLE),
    "pathologygan": (100, QUICK_STYLE),
    "spade": (100, QUICK_SPADE),
    "vaegan": (100, {"learning_rate": 4e-3}),
}


def dimensions(name: str) -> tuple[int, ...]:
    field = method_class(name).Config.model_fields["spatial_dims"]
    return get_args(field.annotation)


def rows() -> list[Any]:
    return [
        pytest.param(row, d, id=f"{row}-{d}d") for row in SMALL for d in dimensions(row.split()[0])
    ]


every = pytest.mark.parametrize(("row", "dims"), rows())


def make(row: str, dims: int, **extra: Any) -> Any:
    torch.manual_seed(0)
    size = {"spatial_dims": dims, "image_size": (EDGE[dims],) * dims}
    return build(row.split()[0], {**size, **SMALL[row], **extra})


def batch(method: Any, seed: int = 0) -> dict[str, Tensor]:
    """Images of one brightness, by condition -0.5 or 0.5, with a label map of three slabs."""
    generator = torch.Generator().manual_seed(seed)
    size = tuple(method.image_size)
    condition = torch.arange(BATCH) % max(1, method.conditions)
    value = condition - 0.5 if method.conditions else torch.full((BATCH,), 0.5)
    image = value.float().reshape(-1, *(1,) * (len(size) + 1)).expand(-1, method.channels, *size)
    noise = 0.05 * torch.randn(image.shape, generator=generator)
    labels = torch.zeros(BATCH, 1, *size, dtype=torch.int64)
    labels[:, :, size[0] // 4 :] = 1
    labels[:, :, size[0] // 2 :] = 2
    return {"image": image + noise, "condition": condition, "labels": labels}


def step(method: Any, optimizers: dict[str, Any], given: dict[str, Tensor]) -> list[str]:
    """One step as the training loop does it; checks losses, gradients and parts."""
    names = []
    for name, loss, parts in method.train().losses(given):
        assert loss.ndim == 0 and loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert all(torch.isfinite(torch.as_tensor(value)).all() for value in parts.values())
        assert all(not torch.as_tensor(value).requires_grad for value in parts.values())
        assert name != "generator" or "fake_score" in parts
        if name == "critic":
            assert {"real_score", "fake_score"} <= set(parts)
            assert 0 <= float(parts["accuracy"]) <= 1
        optimizers[name].zero_grad()
        loss.backward()
        for group in optimizers[name].param_groups:
            for weight in group["params"]:
                assert weight.grad is None or torch.isfinite(weight.grad).all()
        optimizers[name].step()
        names.append(name)
    return names


@functools.cache
def after_steps(row: str, dims: int, count: int = 2) -> Any:
    """A method that has begun to learn; shared by tests that do not train it."""
    method = make(row, dims)
    optimizers = method.optimizers()
    for number in range(count):
        step(method, optimizers, batch(method, number))
    return method


def inputs(method: Any, count: int = 4) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(5)
    latent = torch.randn(count, *method.latent_shape, generator=generator)
    return latent, (torch.arange(count) // 2 % 2 if method.conditions else None)


@torch.inference_mode()
def sample(method: Any, *given: Any, **settings: Any) -> dict[str, Tensor]:
    made: dict[str, Tensor] = method.eval().generate(*given, **settings)
    return made


def test_every_sampling_method_and_variant_is_tested() -> None:
    sampling = {name for name in REGISTRY if hasattr(method_class(name), "generate")}
    variants = {name for name, (method, _) in VARIANTS.items() if method in sampling}
    assert {row.split()[0] for row in SMALL} == sampling | variants


@every
def test_it_has_what_sampling_asks_for(row: str, dims: int) -> None:
    method = make(row, dims)
    assert method.spatial_dims == dims
    assert method.image_size == (EDGE[dims],) * dims
    assert method.conditions == SMALL[row].get("conditions", 0)
    assert method.input_slices == 1 and method.divisor == 1
    assert all(isinstance(length, int) for length in method.latent_shape)
    assert "critic" in method.training_only
    assert all(hasattr(method, name) for name in method.training_only)
    assert all(field.description for field in type(method.config).model_fields.values())


@every
def test_steps_move_every_parameter(row: str, dims: int) -> None:
    method = make(row, dims)
    before = {name: weight.detach().clone() for name, weight in method.named_parameters()}
    optimizers = method.optimizers()
    assert {"critic", "generator"} <= set(optimizers)
    owned = {id(w) for o in optimizers.values() for g in o.param_groups for w in g["params"]}
    assert owned == {id(weight) for weight in method.parameters() if weight.requires_grad}
    for _ in range(LATE.get(row.split()[0], 1)):
        names = step(method, optimizers, batch(method))
    critics = getattr(method.config, "n_critic", 1)
    order = [name for name in names if name in {"critic", "generator"}]
    assert order == ["critic"] * critics + ["generator"]
    assert set(names) == set(optimizers)
    weights = {n: weight for n, weight in method.named_parameters() if weight.numel()}
    still = {n for n, weight in weights.items() if torch.equal(before[n], weight)}
    assert not still - WITHIN_MARGINS


@every
def test_sampling_is_repeatable_and_touches_nothing(row: str, dims: int) -> None:
    method = after_steps(row, dims)
    latent, condition = inputs(method)
    kept = latent.clone()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    first = sample(method, latent, condition)
    torch.manual_seed(1)
    random_state = torch.get_rng_state()
    second = sample(method, latent, condition)
    alone = sample(method, latent[1:2], None if condition is None else condition[1:2])
    assert torch.equal(random_state, torch.get_rng_state()), "sampling drew random numbers"
    assert torch.equal(kept, latent), "the latent was changed"
    for name, old in state.items():
        assert torch.equal(old, method.state_dict()[name]), f"sampling changed {name}"
    for name, made in first.items():
        assert torch.equal(made, second[name])
        assert torch.allclose(made[1:2], alone[name], atol=1e-5), "depends on the batch"
    assert not torch.equal(first["image"][0], first["image"][1]), "the latent does not matter"


@every
def test_images_have_the_right_shape_and_range(row: str, dims: int) -> None:
    method = after_steps(row, dims)
    latent, condition = inputs(method)
    for scale in (1.0, 100.0):
        made = sample(method, latent * scale, condition)
        assert set(made) <= {"image", "labels"}
        assert made["image"].shape == (4, method.channels, *method.image_size)
        assert made["image"].dtype == torch.float32
        assert made["image"].abs().max() <= 1
    if "labels" in made:
        assert made["labels"].shape == (4, 1, *method.image_size)
        assert made["labels"].dtype == torch.int64
        assert 0 <= made["labels"].min() <= made["labels"].max() < SMALL[row]["labels"]


@every
def test_truncation_to_zero_leaves_one_image(row: str, dims: int) -> None:
    method = after_steps(row, dims)
    latent, condition = inputs(method)
    try:
        image = sample(method, latent, condition, truncation=0.0)["image"]
    except InputError as refusal:
        assert "truncat" in str(refusal)
        return
    assert torch.allclose(image[0], image[1], atol=1e-5)
    assert not torch.equal(image[0], sample(method, latent, condition)["image"][0])


@every
def test_the_condition_changes_the_image(row: str, dims: int) -> None:
    method = after_steps(row, dims)
    latent, condition = inputs(method)
    if condition is None:
        with pytest.raises(InputError):
            method.generate(latent, torch.zeros(len(latent), dtype=torch.int64))
        return
    here, there = (sample(method, latent, c)["image"] for c in (condition, 1 - condition))
    assert ((here - there).flatten(1).abs().amax(1) > 1e-6).all()
    with pytest.raises(InputError):
        method.generate(latent, None)


@every
def test_saving_and_loading_is_exact_without_what_only_training_needs(row: str, dims: int) -> None:
    method = after_steps(row, dims)
    latent, condition = inputs(method)
    before = sample(method, latent, condition)
    torch.manual_seed(99)
    again = build(row.split()[0], method.config)
    again.load_state_dict(load(save({n: v.contiguous() for n, v in method.state_dict().items()})))
    for name in method.training_only:
        setattr(again, name, None)
    after = sample(again, latent, condition)
    assert all(torch.equal(before[name], after[name]) for name in before)
    light = {n: v for n, v in method.state_dict().items() if n in again.state_dict()}
    again.load_state_dict(light)


@every
def test_weights_and_optimisers_are_all_there_is_to_a_run(row: str, dims: int) -> None:
    """Whoever goes on from a checkpoint takes the same step; counters must be buffers."""
    method, count = make(row, dims), 3
    optimizers = method.optimizers()
    for number in range(count):
        step(method, optimizers, batch(method, number))
    again = build(row.split()[0], method.config)
    again.load_state_dict(method.state_dict())
    others = again.optimizers()
    for name, optimizer in others.items():
        optimizer.load_state_dict(copy.deepcopy(optimizers[name].state_dict()))
    for one, its in ((method, optimizers), (again, others)):
        torch.manual_seed(7)
        step(one, its, batch(one, count))
    for name, value in method.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@every
def test_the_configuration_survives_json(row: str, dims: int) -> None:
    config = make(row, dims).config
    text = json.dumps(config.model_dump(mode="json"))
    cls = method_class(row.split()[0])
    assert cls.Config.model_validate(json.loads(text)) == config
    with pytest.raises(ValueError, match="colour"):
        cls.Config.model_validate({**json.loads(text), "colour": 1})


@every
def test_losses_are_finite_under_autocast(row: str, dims: int) -> None:
    """In bfloat16, as on a GPU; logits and penalties must stay in float32."""
    if dims == 3:
        pytest.skip("convolutions of volumes in bfloat16 are unreliable on a CPU")
    method = make(row, dims)
    optimizers = method.optimizers()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for number in range(2):
            step(method, optimizers, batch(method, number))
    latent, condition = inputs(method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sample(method, latent, condition)["image"].dtype == torch.float32


@pytest.mark.slow
@every
def test_it_learns_the_brightness_of_each_condition(row: str, dims: int) -> None:
    """The crudest thing there is to learn, in a few seconds; samples start near 0.

    Adversaries chase each other around the truth, so samples of the last steps are averaged.
    """
    same = {"stylegan2 adaptive", "spade unconditional", "vaegan unconditional"}
    if row in same or (dims == 3 and row not in {"dcgan", "hinge", "spade", "vaegan"}):
        pytest.skip("the same code as another row")
    steps, quick = LEARN.get(row.split()[0], (60, {}))
    method = make(row, dims, **quick)
    optimizers = method.optimizers()
    latent, condition = inputs(method, 16)
    means = []
    for number in range(steps):
        step(method, optimizers, batch(method, number))
        if number >= steps * 2 // 3 and number % 4 == 0:
            means.append(sample(method, latent, condition)["image"].flatten(1).mean(1))
    wanted = 0.5 if condition is None else condition - 0.5
    assert (torch.stack(means).mean(0) - wanted).abs().mean() < 0.25
