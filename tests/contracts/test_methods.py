"""What every method that predicts from an image promises, in 2-D and in 3-D. See CONTRIBUTING.md.

Methods that make images from noise have their own contract, in ``test_samplers.py``, and so have
those that restore or translate an image, in ``test_restorers.py``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score
from test_restorers import CASES as RESTORERS
from torch import Tensor
from training_step import step

from medgen.errors import InputError
from medgen.methods import REGISTRY, build, method_class, registered
from medgen.phantoms import brain

EDGE = {2: 32, 3: 16}  # voxels; what the deepest network can halve
FIELD_MM = 192.0
# Shared by the rows below.
CODED: dict[str, Any] = {"features": (8, 16, 16), "learning_rate": 3e-3}
CRITIC: dict[str, Any] = {"critic_features": (8, 16)}
MIXTURE: dict[str, Any] = {"components": 3, "mixture_channels": 2}
# What has overfitted is steep; longer steps leap to where no image is.
DOWNHILL: dict[str, Any] = {"restoration_steps": 3, "restoration_rate": 0.03}
# One small configuration per method and variant; a rate that can overfit in a few steps.
SMALL: dict[str, dict[str, Any]] = {
    "intensity": {},
    "pca": {"components": 8, "grid": 16},
    "autoencoder": {**CODED, "latent_channels": 16},
    "autoencoder dense": {**CODED, "latent": "dense", "latent_channels": 8},
    "mlp_ae": {"hidden": (64, 16), "latent_channels": 4, "learning_rate": 3e-3},
    "linear_ae": {"latent_channels": 4, "decay": 1e-3, "decay_growth": 1.0, "learning_rate": 3e-3},
    "context_ae": {**CODED, "latent_channels": 16},
    "constrained_ae": {**CODED, "latent_channels": 16, "constraint": 0.1},
    "bayesian_ae": {**CODED, "latent_channels": 16, "dropout": 0.1, "passes": 4},
    "perceptual_ae": {**CODED, "latent_channels": 16, "perceptual": 0.001},
    "vae": {**CODED, "latent_channels": 16, "beta": 1e-4},
    "vae dense": {**CODED, "latent": "dense", "latent_channels": 8, "beta": 1e-4},
    "vae_restoration": {**CODED, **DOWNHILL, "latent_channels": 16, "beta": 1e-4},
    "cevae": {**CODED, "latent_channels": 16, "beta": 1e-4},
    "gmvae": {**CODED, **MIXTURE, "latent_channels": 16, "beta": 1e-4},
    "gmvae dense": {**CODED, **MIXTURE, "latent": "dense", "latent_channels": 8, "beta": 1e-4},
    "gmvae_restoration": {**CODED, **MIXTURE, **DOWNHILL, "latent_channels": 16},
    "vqvae": {
        **CODED,
        "latent_channels": 8,
        "codes": 24,
        "decay": 0.9,
        "prior_width": 8,
        "prior_layers": 1,
    },
    "fpi": {"features": (8, 8, 16, 16, 16), "learning_rate": 3e-3},
    "cutpaste_seg": {"features": (8, 8, 16, 16, 16), "learning_rate": 3e-3},
    "padim": {"widths": (8, 16, 16, 16), "dimensions": 12, "grid": 8},
    "padim shared": {"widths": (8, 16, 16, 16), "dimensions": 12, "positions": "shared"},
    "dn2": {"widths": (8, 16, 16, 16), "stages": (1, 2), "neighbours": 1, "capacity": 8},
    "pddpm": {"features": (8, 16), "blocks": 1, "test_timestep": 250, "learning_rate": 3e-3},
    "dae": {"features": (8, 8, 16, 16, 16), "noise_grid": 6, "learning_rate": 3e-3},
    "restore": {"features": (4, 8, 8, 16, 16), "learning_rate": 3e-3},
    "mae": {"features": (16, 32), "parts": 2, "learning_rate": 3e-3, "weight_decay": 0.0},
    "aae": {**CODED, "latent_channels": 16, "critic_width": 16},
    "constrained_aae": {
        **CODED,
        "learning_rate": 1e-3,
        "latent": "dense",
        "critic_width": 16,
        "critic_steps": 2,
    },
    "anovaegan": {**CODED, "latent_channels": 16, **CRITIC},
    "anovaegan dense": {**CODED, **CRITIC, "latent": "dense"},
    "f_anogan": {**CODED, **CRITIC, "critic_steps": 2, "gan_rate": 2e-3, "gan_steps": 300},
    "alpha_gan": {**CODED, **CRITIC, "code_critic_width": 16},
}
# Area under the ROC curve of the residual in planted lesions; 0.5 is chance.
ABOVE_CHANCE = 0.65
# How long each learns; those with a critic learn more slowly.
STEPS = {
    "pca": 1, "padim": 1, "dn2": 1, "dae": 60, "restore": 60,
    "mae": 300, "constrained_aae": 300, "anovaegan": 450, "f_anogan": 750, "alpha_gan": 500,
}  # fmt: skip
# Most of the variance of healthy images that may stay unexplained. With a critic, how much it is
# differs from seed to seed and from processor to processor.
UNEXPLAINED = dict.fromkeys(("constrained_aae", "anovaegan", "f_anogan", "alpha_gan"), 0.75)
# Networks for images of one size.
SIZED = {
    "autoencoder dense", "mlp_ae", "linear_ae", "vae dense", "gmvae dense",
    "constrained_aae", "anovaegan dense", "f_anogan", "alpha_gan",
}  # fmt: skip
# Without losses: what a batch does to them, if anything, happens at once.
WITHOUT_PARAMETERS = {"intensity", "pca", "padim", "padim shared", "dn2"}
# What stays as it was built: a network that was trained elsewhere.
FIXED = {
    "padim": ("extractor.", "chosen"),
    "padim shared": ("extractor.", "chosen"),
    "dn2": ("extractor.",),
}
OUTPUTS = {"restored", "log_odds", "score"}


def settings(variant: str, dims: int) -> dict[str, Any]:
    values = {"spatial_dims": dims, **SMALL[variant]}
    return values | ({"image_size": (EDGE[dims],) * dims} if variant in SIZED else {})


def make(variant: str, dims: int, **extra: Any) -> Any:
    torch.manual_seed(0)
    return build(variant.split()[0], settings(variant, dims) | extra)


def phantoms(dims: int, channels: int = 1, count: int = 4) -> dict[str, Tensor]:
    """Heads with and without a lesion; each further channel is another contrast."""
    contrasts = ("t1", "t2", "flair")[:channels]

    def stack(
        get: Callable[[Any], Any], radius: float | None, contrasts: tuple[str, ...]
    ) -> Tensor:
        grid = {"shape": (EDGE[dims],) * dims, "spacing_mm": FIELD_MM / EDGE[dims]}
        heads = [
            [brain(**grid, seed=seed, contrast=c, lesion_radius_mm=radius) for c in contrasts]
            for seed in range(count)
        ]
        arrays = [torch.stack([torch.as_tensor(get(h)).float() for h in row]) for row in heads]
        return torch.stack(arrays)

    def voxels(head: Any) -> Any:
        return head.image.voxels[0] / 1000

    return {
        "image": stack(voxels, 18.0, contrasts),
        "healthy": stack(voxels, None, contrasts),
        "anomaly": stack(lambda head: head.lesion, 18.0, contrasts[:1]),
        "mask": stack(lambda head: head.brain, None, contrasts[:1]),
    }


BATCHES = {2: phantoms(2), 3: phantoms(3)}


every = pytest.mark.parametrize(
    ("variant", "dims"),
    [pytest.param(v, d, id=f"{v}-{d}d") for v, d in itertools.product(SMALL, (2, 3))],
)


def test_every_registered_method_is_tested() -> None:
    """Here if it finds anomalies, in ``test_restorers.py`` if it restores or translates an image,

    in ``test_samplers.py`` if it makes one from noise.
    """
    classes = {name: method_class(name) for name in REGISTRY}
    predicting = {name for name, cls in classes.items() if hasattr(cls, "predict")}
    here, there = (
        {registered(case.split()[0], {})[0] for case in cases} for cases in (SMALL, RESTORERS)
    )
    assert here | there == predicting
    assert not here & there
    others = [classes[name] for name in set(REGISTRY) - predicting]
    assert all(hasattr(cls, "generate") or hasattr(cls, "features") for cls in others)


@every
def test_it_has_what_inference_asks_for(variant: str, dims: int) -> None:
    method = make(variant, dims)
    assert method.spatial_dims == dims
    assert method.divisor >= 1
    assert method.input_slices == 1
    assert all(field.description for field in type(method.config).model_fields.values())


@every
def test_one_step_moves_every_parameter(variant: str, dims: int) -> None:
    method = make(variant, dims)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trained = {name for name, weight in method.named_parameters() if weight.requires_grad}
    optimizers = method.optimizers()
    owned = {id(w) for o in optimizers.values() for g in o.param_groups for w in g["params"]}
    assert owned == {id(weight) for weight in method.parameters() if weight.requires_grad}
    losses = step(method, optimizers, BATCHES[dims])
    assert {name for name, _ in losses} == set(optimizers)
    still = {name for name, old in before.items() if torch.equal(old, method.state_dict()[name])}
    assert not still & trained
    if variant not in WITHOUT_PARAMETERS:
        assert trained
    else:
        assert not {name for name in still if not name.startswith(FIXED.get(variant, ()))}


@every
def test_prediction_is_repeatable_and_touches_nothing(variant: str, dims: int) -> None:
    method = make(variant, dims).eval()
    image = BATCHES[dims]["image"].clone()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    random_state = torch.get_rng_state()
    with torch.inference_mode():
        first = method.predict(image)
        torch.manual_seed(1)
        second = method.predict(image)
        alone = method.predict(image[1:2])
    torch.set_rng_state(random_state)
    assert torch.equal(image, BATCHES[dims]["image"]), "the input was changed"
    for name, old in state.items():
        assert torch.equal(old, method.state_dict()[name]), f"prediction changed {name}"
    for name, output in first.items():
        assert torch.equal(output, second[name])
        assert output.untyped_storage().data_ptr() != image.untyped_storage().data_ptr()
        assert torch.allclose(output[1:2], alone[name], atol=1e-5), "depends on the batch"


@every
@pytest.mark.parametrize("channels", [1, 2])
def test_outputs_have_the_right_shape_and_range(variant: str, dims: int, channels: int) -> None:
    extra = {"channels": channels} if variant != "intensity" else {}
    method = make(variant, dims, **extra).eval()
    image = torch.cat([BATCHES[dims]["image"]] * channels, dim=1)
    # Sizes need not be equal; a dense network takes smaller images, the others larger ones too.
    image = image[:, :, 3:-2] if method.divisor == 1 else torch.cat([image, image], dim=2)
    with torch.inference_mode():
        outputs = method.predict(image)
    assert outputs
    assert set(outputs) <= OUTPUTS
    for name, output in outputs.items():
        expected = channels if name == "restored" else 1
        assert output.shape == (len(image), expected, *image.shape[2:])
        assert output.dtype == torch.float32
        assert torch.isfinite(output).all()


@every
def test_saving_and_loading_is_exact(variant: str, dims: int) -> None:
    method = make(variant, dims)
    step(method, method.optimizers(), BATCHES[dims])
    stored = save({name: value.contiguous() for name, value in method.state_dict().items()})
    torch.manual_seed(99)
    again = build(variant.split()[0], settings(variant, dims))
    again.load_state_dict(load(stored))
    with torch.inference_mode():
        before = method.eval().predict(BATCHES[dims]["image"])
        after = again.eval().predict(BATCHES[dims]["image"])
    assert all(torch.equal(before[name], after[name]) for name in before)


@every
def test_the_configuration_survives_json(variant: str, dims: int) -> None:
    config = make(variant, dims).config
    text = json.dumps(config.model_dump(mode="json"))
    cls = method_class(variant.split()[0])
    assert cls.Config.model_validate(json.loads(text)) == config
    with pytest.raises(ValueError, match="colour"):
        cls.Config.model_validate({**json.loads(text), "colour": 1})


@every
def test_it_learns_a_few_phantoms(variant: str, dims: int) -> None:
    """Trained on four heads for a few seconds, it explains a good part of their variance,

    or what it says of a lesion is more than it said of the healthy image there.
    """
    if variant == "intensity":
        pytest.skip("has nothing to learn")
    method, batch = make(variant, dims), BATCHES[dims]
    optimizers = method.optimizers()
    torch.manual_seed(0)
    for _ in range(STEPS.get(variant.split()[0], 200)):
        step(method, optimizers, batch)
    mask, lesion = batch["mask"].bool(), batch["anomaly"].bool()
    with torch.inference_mode():
        healthy, ill = (method.eval().predict(batch[name]) for name in ("healthy", "image"))
    if "restored" in healthy:
        error = (healthy["restored"] - batch["healthy"])[mask].square().mean()
        assert error < UNEXPLAINED.get(variant.split()[0], 0.5) * batch["healthy"][mask].var()
        residual = (ill["restored"] - batch["image"]).abs()
        assert roc_auc_score(lesion[mask], residual[mask]) > ABOVE_CHANCE
    if "restored" in ill and "log_odds" in ill:
        found = torch.sigmoid(ill["log_odds"])
        assert found[lesion].mean() > 2 * found[mask & ~lesion].mean()
    if "restored" not in ill:
        before, found = (next(iter(outputs.values())) for outputs in (healthy, ill))
        if "log_odds" in ill:
            before, found = torch.sigmoid(before), torch.sigmoid(found)
        assert found[lesion].mean() > 1.02 * before[lesion].mean()


@every
def test_a_size_it_cannot_divide_is_refused_with_the_one_to_pad_to(variant: str, dims: int) -> None:
    method = make(variant, dims).eval()
    size = (EDGE[dims] - 1,) * dims
    image = torch.rand(1, 1, *size)
    if method.divisor == 1:
        assert all(output.shape[2:] == size for output in method.predict(image).values())
        return
    padded = tuple(-(-edge // method.divisor) * method.divisor for edge in size)
    with pytest.raises(InputError) as caught:
        method.predict(image)
    assert str(padded) in str(caught.value)
    assert str(size) in str(caught.value)
