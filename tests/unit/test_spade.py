"""SPADE: labels modulate the image, masks come from training only, and training learns both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from medgen.errors import InputError
from medgen.methods import build
from medgen.networks.spade import SpatiallyAdaptiveNorm, feature_matching

SIZE = {2: (16, 24), 3: (8, 16, 8)}
SMALL: dict[str, Any] = {
    "labels": 3, "conditions": 2, "latent": 4, "features": (12, 12, 8), "modulation": 8,
    "critic_features": (8, 16), "critic_scales": 2, "bank_size": 8, "mask_latent": 4,
    "mask_features": (8, 8),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(dims: int = 2, **extra: Any) -> Any:
    torch.manual_seed(0)
    return build("spade", {"spatial_dims": dims, "image_size": SIZE[dims], **SMALL, **extra})


def boxes(dims: int, count: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Two boxes, one in the other, whose brightness depends on label and condition."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, 1, *SIZE[dims], dtype=torch.long)
    for entry in labels[:, 0]:
        low = [int(torch.randint(1, n // 4 + 1, (), generator=generator)) for n in entry.shape]
        outer = tuple(slice(a, n - a) for a, n in zip(low, entry.shape, strict=True))
        inner = tuple(slice(a + 1, a + n // 3) for a, n in zip(low, entry.shape, strict=True))
        entry[outer] = 1
        entry[inner] = 2
    condition = torch.arange(count) % 2
    bright = torch.tensor([[-0.9, 0.6, -0.2], [-0.9, -0.4, 0.7]])
    image = bright[condition[:, None].expand(-1, labels[0].numel()), labels.flatten(1)]
    return {"image": image.reshape(labels.shape), "labels": labels, "condition": condition}


def train(method: Any, *batches: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """One step on each batch; gives the parts of the last one."""
    optimizers, seen = method.optimizers(), {}
    method.train()
    for batch in batches:
        for name, loss, parts in method.losses(batch):
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            seen[name] = parts
    method.eval()
    return seen


def test_the_norm_has_no_parameters_and_modulates_by_place() -> None:
    norm = SpatiallyAdaptiveNorm(2, 4, hidden=3)
    assert not list(norm.norm.parameters())
    features = 5 + 3 * torch.randn(2, 4, 8, 8)
    torch.nn.init.zeros_(norm.scale_shift.weight)
    torch.nn.init.zeros_(norm.scale_shift.bias)
    plain = norm(features, torch.randn(2, 3, 8, 8))
    assert torch.allclose(plain.mean((2, 3)), torch.zeros(2, 4), atol=1e-5)
    assert torch.allclose(plain.std((2, 3), correction=0), torch.ones(2, 4), atol=1e-3)
    torch.nn.init.normal_(norm.scale_shift.weight)
    modulation = torch.zeros(2, 3, 8, 8)
    modulation[:, :, 2, 2] = 1
    changed = norm(features, modulation) != plain
    assert changed[:, :, 1:4, 1:4].all()
    changed[:, :, 1:4, 1:4] = False
    assert not changed.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_other_labels_change_the_image_there(dims: int) -> None:
    method = make(dims).eval()
    # Small first weights would hide the labels behind rounding.
    for weight in method.generator.blocks.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    labels = torch.ones(1, 1, *SIZE[dims], dtype=torch.long)
    other = labels.clone()
    corner = (..., *[slice(0, n // 4) for n in SIZE[dims]])
    other[corner] = 2
    latent, condition = torch.randn(1, 4), torch.tensor([0])
    with torch.inference_mode():
        change = method.paint(labels, latent, condition) - method.paint(other, latent, condition)
    change = change.abs()
    far = (..., *[slice(-(n // 4), None) for n in SIZE[dims]])
    assert float(change[corner].mean()) > 2 * float(change[far].mean())
    assert float(change[corner].mean()) > 1e-3


def test_latent_and_condition_change_the_image_but_not_the_given_labels() -> None:
    method, batch = make().eval(), boxes(2)
    latent = torch.randn(4, *method.latent_shape)
    with torch.inference_mode():
        first = method.paint(batch["labels"], latent, batch["condition"])
        other = method.paint(batch["labels"], latent + 1, batch["condition"])
        swapped = method.paint(batch["labels"], latent, 1 - batch["condition"])
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, swapped)
    assert float(first.abs().max()) <= 1


def test_equal_features_match_and_only_the_made_ones_learn() -> None:
    real = [torch.randn(2, 3, requires_grad=True), torch.randn(2, 4, requires_grad=True)]
    assert float(feature_matching(real, real).detach()) == 0
    fake = [(part + 2).detach().requires_grad_() for part in real]
    loss = feature_matching(real, fake)
    assert float(loss.detach()) == pytest.approx(2)
    loss.backward()
    assert real[0].grad is None
    assert fake[0].grad is not None


def test_augmentation_moves_images_and_labels_alike() -> None:
    method, batch = make(augment="diffaugment"), boxes(2)
    seen: list[Tensor] = []
    method.critic.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    is_one = (batch["labels"] == 1).float()
    known = torch.cat([(batch["labels"] == value).float() for value in range(3)], dim=1)
    method._judge(is_one, 1 - is_one, known, torch.zeros(4, 2))
    real, fake = seen[0].chunk(2)
    assert not torch.equal(real[:, 2:3], is_one), "nothing moved"
    assert torch.equal(real[:, 0], real[:, 2])
    assert torch.equal(fake[:, 1:4], real[:, 1:4])
    inside = real[:, 1:4].sum(1) > 0  # neither moved in nor cut out
    assert torch.equal(fake[:, 0][inside], 1 - real[:, 0][inside])


def test_the_hinge_leaves_a_confident_critic_alone() -> None:
    method, batch = make(), boxes(2)
    marks = [torch.cat([torch.full((4, 1, 2, 2), 1.5), torch.full((4, 1, 2, 2), -1.5)])]
    method.critic.forward = lambda image: [(mark, [image]) for mark in marks]
    name, loss, parts = next(method.losses(batch))
    assert (name, float(loss), float(parts["accuracy"])) == ("critic", 0.0, 1.0)


@pytest.mark.parametrize("sampler", ["none", "deform", "vae"])
@pytest.mark.parametrize("dims", [2, 3])
def test_one_step_moves_every_network_of_every_sampler(dims: int, sampler: str) -> None:
    method = make(dims, mask_sampler=sampler)
    before = {name: weight.clone() for name, weight in method.named_parameters()}
    parts = train(method, boxes(dims))
    assert list(parts) == ["critic", "generator", *(["masks"] if sampler == "vae" else [])]
    assert {"real_score", "fake_score", "accuracy"} <= set(parts["critic"])
    same = [n for n, weight in method.named_parameters() if torch.equal(weight, before[n])]
    assert not same


def test_masks_are_kept_in_training_and_only_there() -> None:
    method, batch = make(), boxes(2)
    with torch.inference_mode():
        method.eval().generate(torch.randn(4, *method.latent_shape), batch["condition"])
        method.paint(batch["labels"], torch.randn(4, *method.latent_shape), batch["condition"])
    assert method.masks.filled.tolist() == [0, 0]
    train(method, batch, batch)
    kept = method.masks.maps[0, : method.masks.filled[0]].long()
    theirs = batch["labels"][batch["condition"] == 0, 0]
    assert all(any(torch.equal(a, b) for b in theirs) for a in kept)
    assert 1 <= len(kept) <= len(theirs)


@pytest.mark.parametrize("sampler", ["deform", "vae"])
def test_sampling_needs_neither_critic_nor_encoders(sampler: str) -> None:
    method, batch = make(mask_sampler=sampler), boxes(2)
    train(method, batch)
    latent = torch.randn(4, *method.latent_shape)
    with torch.inference_mode():
        first = method.generate(latent, batch["condition"])
        for name in method.training_only:
            setattr(method, name, None)
        again = method.generate(latent, batch["condition"])
        painted = method.paint(first["labels"], latent, batch["condition"])
        calm = method.generate(latent, batch["condition"], truncation=0.0)
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["image"], painted)
    assert first["labels"].dtype == torch.int64
    assert torch.equal(calm["image"][0], calm["image"][2]), "the same condition, no variety"


def test_without_a_sampler_masks_must_be_given() -> None:
    method = make(mask_sampler="none").eval()
    assert method.latent_shape == (4,)
    with pytest.raises(InputError, match="mask sampler"):
        method.generate(torch.randn(1, 4), torch.tensor([0]))


def test_input_that_does_not_fit_is_refused() -> None:
    method, batch = make(), boxes(2)
    latent = torch.randn(4, *method.latent_shape)
    with pytest.raises(InputError, match="labels must be 0 to 2, got 0 to 3"):
        method.paint(batch["labels"] + (batch["labels"] == 2), latent, batch["condition"])
    with pytest.raises(InputError, match="label maps must be"):
        method.paint(batch["labels"][..., :-1], latent, batch["condition"])
    with pytest.raises(InputError, match="one of 2 conditions"):
        method.generate(latent)
    with pytest.raises(InputError, match="0 to 1, got"):
        method.generate(latent, torch.tensor([0, 1, 2, 0]))
    with pytest.raises(InputError, match="have none"):
        next(method.losses({"image": batch["image"], "condition": batch["condition"]}))
    with pytest.raises(InputError, match="no conditions to choose from, but one"):
        make(conditions=0).eval().generate(latent, torch.tensor([0, 0, 0, 0]))
    with pytest.raises(InputError, match=r"mirror_axes must be among 0 to 1, got \(2,\)"):
        make(mirror_axes=(2,))
    with pytest.raises(InputError, match="halve images until edges of 32"):
        make(critic_features=(4, 4, 4), critic_scales=3)
    make(critic_features=(4, 4, 4), critic_scales=2)
    with pytest.raises(InputError, match=r"\(16, 28\)"):
        make(image_size=(16, 26))
    with pytest.raises(InputError, match="3 numbers"):
        make(3, image_size=(16, 16))


def test_it_learns_to_paint_labels_in_the_contrast_of_the_condition() -> None:
    method = make(generator_rate=2e-3, critic_rate=2e-3)
    train(method, *[boxes(2, count=8, seed=seed) for seed in range(1, 61)])
    fresh = boxes(2, count=8)
    latent = torch.randn(8, *method.latent_shape)
    with torch.inference_mode():
        image = method.paint(fresh["labels"], latent, fresh["condition"])
        wrong = method.paint(fresh["labels"], latent, 1 - fresh["condition"])
    error = (image - fresh["image"]).abs().mean()
    assert float(error) < 0.2
    assert float(error) < 0.5 * float((wrong - fresh["image"]).abs().mean())


@pytest.mark.parametrize("dims", [2, 3])
def test_the_mask_autoencoder_learns_a_few_masks(dims: int) -> None:
    method = make(dims, mask_sampler="vae", mask_divergence=0.1, mask_rate=5e-3)
    batch = boxes(dims)
    known = torch.cat([(batch["labels"] == value).float() for value in range(3)], dim=1)
    condition = torch.nn.functional.one_hot(batch["condition"], 2).float()
    optimizer = method.optimizers()["masks"]
    for _ in range(120):
        mean, _ = method.mask_encoder(known, condition)
        logits = method.masks(mean, condition)
        loss = torch.nn.functional.cross_entropy(logits, batch["labels"][:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        mean, _ = method.mask_encoder(known, condition)
        found = method.masks(mean, condition).argmax(1, keepdim=True)
    for value in (1, 2):
        ours, truth = found == value, batch["labels"] == value
        assert 2 * (ours & truth).sum() / (ours.sum() + truth.sum()) > 0.8
