"""Translation: the parts of the losses, the pool of images, and what is special about each method.

What every method promises is in ``tests/contracts/test_restorers.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medgen.errors import InputError
from medgen.methods import build
from medgen.methods._cycle import signed
from medgen.methods.cut import patch_nce
from medgen.networks.pool import ImagePool
from medgen.networks.translation import PatchGAN, ResNetTranslator, UNetTranslator

TINY: dict[str, Any] = {"width": 4, "blocks": 2, "critic_width": 4, "critic_layers": 1}
SIDE = 16


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def method(name: str, **values: Any) -> Any:
    torch.manual_seed(0)
    return build(name, TINY | values)


def images(count: int = 2, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, count, 1, SIDE, SIDE, generator=generator)
    return {"image": first, "target": second, "mask": torch.ones_like(first)}


def parts_of(trained: Any, batch: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The last step of every optimiser: its loss and its parts, before anything is changed."""
    torch.manual_seed(1)
    return {name: {"loss": loss, **parts} for name, loss, parts in trained.losses(batch)}


class Inverted(nn.Module):
    """Bright becomes dark, in -1..1: its own inverse."""

    def forward(self, image: Tensor) -> Tensor:
        return -image


# ---- The cycle. ----


@pytest.mark.parametrize("name", ["cyclegan", "dualgan", "discogan"])
def test_a_pair_of_inverses_has_no_cycle_loss(name: str) -> None:
    trained = method(name)
    assert parts_of(trained, images())["generators"]["cycle"] > 0.1
    trained.to_target = trained.to_source = Inverted()
    assert parts_of(trained, images())["generators"]["cycle"] == 0


def test_generators_that_leave_an_image_alone_have_no_identity_loss() -> None:
    trained = method("cyclegan")
    assert parts_of(trained, images())["generators"]["identity"] > 0.1
    trained.to_target = trained.to_source = nn.Identity()
    assert parts_of(trained, images())["generators"]["identity"] == 0
    trained.to_target = trained.to_source = Inverted()
    batch = images()
    expected = 2 * (signed(batch["image"]).abs().mean() + signed(batch["target"]).abs().mean())
    assert torch.isclose(parts_of(trained, batch)["generators"]["identity"], expected)


def test_the_losses_are_the_papers_sums() -> None:
    found = parts_of(method("cyclegan"), images())["generators"]
    expected = found["adversarial"] + 10 * found["cycle"] + 0.5 * 10 * found["identity"]
    assert torch.isclose(found["loss"], expected)
    found = parts_of(method("discogan"), images())["generators"]
    assert torch.isclose(found["loss"], found["adversarial"] + found["cycle"])


@pytest.mark.parametrize("name", ["cyclegan", "uaggan", "uaggan paired", "cut"])
def test_critics_that_see_through_everything_cost_a_whole_square_each(name: str) -> None:
    """The papers' weights are for (D(G(x)) - 1)^2, not for Mao et al.'s half of it."""
    name, _, paired = name.partition(" ")
    trained = method(name, **({"paired": True} if paired else {}))
    critics = [part for part in trained.children() if isinstance(part, PatchGAN)]
    for critic in critics:
        for weight in critic.judge.parameters():
            nn.init.zeros_(weight)
    steps = parts_of(trained, images())
    made = next(parts for parts in steps.values() if "adversarial" in parts)
    assert float(made["adversarial"]) == pytest.approx(len(critics))


def test_squares_measure_the_way_back_of_discogan_and_absolute_values_of_dualgan() -> None:
    class Offset(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image + 0.1

    for name, expected in (("discogan", 2 * 0.2**2), ("dualgan", 2 * 0.2)):
        trained = method(name)
        trained.to_target = trained.to_source = Offset()
        cycle = parts_of(trained, images())["generators"]["cycle"]
        assert float(cycle) == pytest.approx(expected, rel=1e-4)


def test_a_wasserstein_critic_keeps_its_weights_within_the_clip() -> None:
    trained = method("dualgan")
    optimizers = trained.optimizers()
    for name, loss, _ in trained.losses(images()):
        optimizers[name].zero_grad()
        loss.backward()
        optimizers[name].step()
    largest = max(float(w.detach().abs().max()) for w in trained.target_critic.parameters())
    assert largest == pytest.approx(0.01)


def test_matching_features_costs_nothing_if_made_images_are_the_real_ones() -> None:
    trained = method("discogan", feature_weight=1.0)
    batch = images()
    batch["target"] = batch["image"]
    assert parts_of(trained, batch)["generators"]["adversarial"] > 0
    trained.to_target = trained.to_source = nn.Identity()
    assert parts_of(trained, batch)["generators"]["adversarial"] == 0


def test_direction_chooses_the_generator() -> None:
    forward = method("cyclegan")
    backward = method("cyclegan", direction="backward")
    backward.load_state_dict(forward.state_dict())
    image = images()["image"]
    there, back = (m.eval().predict(image)["output"] for m in (forward, backward))
    assert not torch.allclose(there, back)
    backward.to_source = backward.to_target
    assert torch.equal(backward.predict(image)["output"], there)


def test_the_pairing_of_an_unpaired_batch_does_not_matter() -> None:
    """Losses are means over each domain: another order of one of them changes nothing."""
    batch = images(3)
    shuffled = {**batch, "target": batch["target"].roll(1, 0)}
    for name in ("cyclegan", "cut"):
        trained = method(name, **({"patches": SIDE**2} if name == "cut" else {}))
        one, other = (parts_of(trained, b) for b in (batch, shuffled))
        for step in one:
            assert torch.isclose(one[step]["loss"], other[step]["loss"], atol=1e-5), (name, step)


# ---- Attention. ----


def test_attention_of_ones_is_a_plain_cyclegan(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = method("cyclegan", identity_weight=0.5)
    guided = method("uaggan", identity_weight=0.5)
    contents = copy.deepcopy([plain.to_target.network, plain.to_source.network])
    for generator, content in zip((guided.to_target, guided.to_source), contents, strict=True):
        # Its own network, and a mask that is 1 everywhere: the sigmoid of a large number.
        generator.network.forward = lambda image, content=content: torch.cat(
            [content(image), torch.full_like(image, 100.0)], dim=1
        )
    for critic in ("target_critic", "source_critic"):
        getattr(guided, critic).load_state_dict(getattr(plain, critic).state_dict())
    for step, parts in parts_of(plain, images()).items():
        other = parts_of(guided, images())[step]
        assert parts.keys() == other.keys()
        assert all(torch.allclose(parts[key], other[key], atol=1e-6) for key in parts)
    output, attention = guided.look(images()["image"])
    assert torch.allclose(output, plain.predict(images()["image"])["output"], atol=1e-6)
    assert torch.all(attention == 1)


def test_without_attention_the_image_stays_as_it_was() -> None:
    guided = method("uaggan")
    guided.to_target.network.forward = lambda image: torch.cat(
        [torch.randn_like(image), torch.full_like(image, -200.0)], dim=1
    )
    image = images()["image"]
    assert torch.allclose(guided.predict(image)["output"], image, atol=1e-6)


def test_paired_pre_training_ends_where_both_generators_make_the_truth() -> None:
    batch = images()
    guided = method("uaggan", paired=True)
    found = parts_of(guided, batch)["generators"]
    assert torch.isclose(
        found["loss"], found["adversarial"] + 100 * found["l1"] + 10 * found["content"]
    )
    truth = {True: signed(batch["target"]), False: signed(batch["image"])}
    guided.to_target.forward = lambda image: truth[True]
    guided.to_source.forward = lambda image: truth[False]
    found = parts_of(guided, batch)["generators"]
    assert found["l1"] == 0
    assert found["content"] == 0


def test_the_second_run_begins_with_the_generators_of_the_first() -> None:
    first, second = method("uaggan", paired=True), method("uaggan")
    kept = {
        name: value
        for name, value in first.state_dict().items()
        if not name.startswith(tuple(f"{part}." for part in first.training_only))
    }
    missing, unknown = second.load_state_dict(kept, strict=False)
    assert not unknown
    assert all(name.split(".")[0] in second.training_only for name in missing)


def test_the_way_back_does_not_teach_the_attention_to_look_away() -> None:
    """An attention of zero has a perfect way back, and it held the generators at the identity."""
    guided = method("uaggan", identity_weight=0.5)

    def slopes() -> tuple[Tensor, Tensor]:
        guided.zero_grad()
        next(loss for name, loss, _ in guided.losses(images()) if name == "generators").backward()
        last = guided.to_target.network.up[-1].weight.grad
        return last[:-1].abs().max(), last[-1].abs().max()

    content, attention = slopes()
    assert content > 0
    assert attention > 0
    for critic in (guided.target_critic, guided.source_critic):
        nn.init.zeros_(critic.judge.weight)
    content, attention = slopes()
    assert content > 0
    assert attention == 0


def test_while_the_critics_lead_the_generators_wait() -> None:
    guided = method("uaggan", critic_lead=2)
    names = [[name for name, _, _ in guided.losses(images())] for _ in range(3)]
    assert names == [["critics"], ["critics"], ["generators", "critics"]]


def test_pairs_soon_move_results_away_from_the_image() -> None:
    """Dark is to become bright: nearer to the truth than to what went in, where attention lies."""
    generator = torch.Generator().manual_seed(0)
    image = 0.3 * torch.rand(2, 1, SIDE, SIDE, generator=generator)
    guided = method("uaggan", paired=True, generator_rate=5e-3)
    optimizers = guided.optimizers()
    for _ in range(20):
        for name, loss, _ in guided.losses({"image": image, "target": 1 - image}):
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
    with torch.no_grad():
        made, attention = guided.look(image)
    assert float((made - (1 - image)).abs().mean()) < 0.3 * float((made - image).abs().mean())
    assert float(attention.mean()) > 0.5


def test_a_critic_without_norms_still_sees_the_image_in_its_last_layer() -> None:
    """From weights of 0.02 features shrank to a thousandth and StarGAN learned no domain."""
    torch.manual_seed(0)
    critic = PatchGAN(2, 1, width=8, layers=4, normal=False, classes=2)
    features = critic(torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)[
        1
    ]
    assert float(features[-1].std().detach()) > 5e-3


# ---- The pool. ----


@given(size=st.integers(0, 5), counts=st.lists(st.integers(1, 4), max_size=8))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_pool_gives_back_images_that_were_made_and_each_kept_one_at_most_once(
    size: int, counts: list[int]
) -> None:
    torch.manual_seed(0)
    pool, made, given_back = ImagePool(size), 0, []
    for count in counts:
        images = torch.arange(made, made + count, dtype=torch.float32).reshape(count, 1, 1, 1)
        made += count
        result = pool(images)
        assert result.shape == images.shape
        given_back += [int(value) for value in result.flatten()]
        if size == 0:
            assert torch.equal(result, images)
    assert len(pool.images) == min(size, made)
    assert all(0 <= number < made for number in given_back)
    # Exchanged images leave the pool: what came back after it was full comes back only once more.
    assert all(given_back.count(number) <= 2 for number in given_back)


def test_half_of_a_full_pools_answers_are_old_and_drawn_evenly() -> None:
    torch.manual_seed(0)
    size, count = 10, 4000
    pool = ImagePool(size)
    numbers = torch.arange(size + count, dtype=torch.float32).reshape(-1, 1)
    assert torch.equal(pool(numbers[:size]), numbers[:size])
    ages = torch.tensor([float(number - pool(number[None])) for number in numbers[size:]])
    share = float((ages == 0).float().mean())
    assert share == pytest.approx(0.5, abs=0.03)
    # Exchanges happen in half of the calls, each of any slot: the mean stay is 2 * size calls.
    assert float(ages[ages > 0].mean()) == pytest.approx(2 * size, rel=0.1)


def test_a_pool_neither_keeps_gradients_nor_the_images_themselves() -> None:
    pool = ImagePool(2)
    image = torch.ones(1, 1, requires_grad=True)
    given_back = pool(image * 2)
    assert not given_back.requires_grad
    given_back.zero_()
    assert torch.equal(pool.images, torch.full((1, 1), 2.0))


def test_a_pools_images_are_saved_and_loaded_whatever_their_number() -> None:
    pool, again = ImagePool(4), ImagePool(4)
    pool(torch.rand(3, 1, 5, 5))
    again(torch.rand(1, 1, 7, 7))
    again.load_state_dict(pool.state_dict())
    assert torch.equal(again.images, pool.images)


# ---- Contrastive learning. ----


def test_patches_are_told_apart_if_features_are() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.linalg.qr(torch.randn(2, 8, 8, generator=generator))[0]
    alike = float(patch_nce(features, features, 0.07))
    assert alike == pytest.approx(0, abs=1e-4)
    strange = float(patch_nce(features, features.roll(1, 1), 0.07))
    assert strange > 10
    same = torch.ones(2, 8, 4) / 2
    assert float(patch_nce(same, same, 0.07)) == pytest.approx(torch.log(torch.tensor(8.0)))


def test_cut_prefers_an_image_that_keeps_its_places() -> None:
    trained = method("cut", patches=SIDE**2)
    image = signed(images()["image"])
    features = trained.generator.encode(image)
    kept = trained._contrast(features, image)
    moved = trained._contrast(features, image.roll(SIDE // 2, 2))
    assert kept < moved


# ---- Many domains. ----


def test_stargan_reads_no_planes_while_training_and_needs_them_to_predict() -> None:
    trained = method("stargan", channels=3, critic_steps=1)
    image = images()["image"]
    labels = {"domain": torch.tensor([0, 1]), "wanted": torch.tensor([1, 0])}
    alone = parts_of(trained, {"image": image, **labels})
    planes = torch.cat([image, torch.rand(2, 2, SIDE, SIDE)], dim=1)
    beside = parts_of(trained, {"image": planes, **labels})
    assert torch.equal(alone["generator"]["loss"], beside["generator"]["loss"])

    first = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(2, -1, SIDE, SIDE)
    outputs = [
        trained.eval().predict(torch.cat([image, wanted], dim=1))["output"]
        for wanted in (first, first.flip(1))
    ]
    assert float((outputs[0] - outputs[1]).detach().abs().max()) > 1e-3
    expected = trained.translate(signed(image), torch.tensor([0, 0]))
    assert torch.allclose(signed(outputs[0]), expected, atol=1e-5)


def test_stargans_way_back_is_to_the_domain_the_image_came_from() -> None:
    trained = method("stargan", channels=3, critic_steps=1)
    batch = {**images(), "domain": torch.tensor([0, 1]), "wanted": torch.tensor([1, 0])}
    asked = []

    def inverted(image: Tensor, wanted: Tensor) -> Tensor:
        asked.append(wanted.tolist())
        return -image

    trained.translate = inverted
    assert parts_of(trained, batch)["generator"]["cycle"] == 0
    assert asked == [[1, 0], [1, 0], [0, 1]]


def test_stargan_refuses_channels_and_batches_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="channels"):
        method("stargan", channels=3, domains=3)
    trained = method("stargan", channels=3, critic_steps=3)
    labels = {"domain": torch.tensor([0, 1]), "wanted": torch.tensor([1, 0])}
    with pytest.raises(InputError, match="multiple of critic_steps"):
        next(trained.losses({**images(), **labels}))


# ---- Pairs. ----


def test_pix2pix_is_the_papers_sum_and_unet_l1_has_no_critic() -> None:
    settings_ = {"features": (4, 8, 8), "dropout": 0.0, "spread": False}
    both = parts_of(method("pix2pix", **settings_), images())
    assert set(both) == {"critic", "generator"}
    found = both["generator"]
    assert torch.isclose(found["loss"], found["adversarial"] + 100 * found["l1"])
    alone = method("unet_l1", **settings_)
    assert alone.critic is None
    assert set(alone.optimizers()) == set(parts_of(alone, images())) == {"generator"}


def test_pix2pix_critic_sees_the_source_too() -> None:
    """A target that fits its source and one that fits another are judged differently."""
    trained = method("pix2pix", features=(4, 8, 8), input_slices=3, channels=2)
    assert trained.critic.layers[0][0].in_channels == 3 * 2 + 1


@pytest.mark.parametrize("generator", ["pix2pix", "unet", "resnet"])
def test_every_generator_hears_which_target_is_wanted(generator: str) -> None:
    """A norm behind the first layer would take constant planes out again."""
    features = (4, 8, 8, 8, 8) if generator == "unet" else (4, 8, 8)
    trained = method("unet_l1", channels=3, generator=generator, features=features).eval()
    first = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(2, -1, SIDE, SIDE)
    one, other = (
        trained.predict(torch.cat([images()["image"], wanted], dim=1))["output"]
        for wanted in (first, first.flip(1))
    )
    assert float((one - other).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("slices", [1, 3])
def test_with_heads_every_target_is_made_and_the_planes_choose(slices: int) -> None:
    """The network itself never sees them, so the wanted target cannot change the others."""
    trained = method("unet_l1", channels=3, heads=2, input_slices=slices, features=(4, 8, 8)).eval()
    assert trained.generator.down[0][0].in_channels == slices
    image = torch.rand(2, slices, 1, SIDE, SIDE)

    def asked(first: float) -> dict[str, Tensor]:
        planes = torch.tensor([first, 1 - first]).view(1, 1, 2, 1, 1)
        planes = planes.expand(2, slices, -1, SIDE, SIDE)
        found: dict[str, Tensor] = trained.predict(torch.cat([image, planes], 2).flatten(1, 2))
        return found

    made = trained.generator(image.flatten(1, 2))
    for first, number in ((1.0, 0), (0.0, 1)):
        found = asked(first)
        assert torch.allclose(found["output"], made[:, 2 * number : 2 * number + 1])
        assert torch.allclose(found["spread"], made[:, 2 * number + 1 : 2 * number + 2].exp())
    asked(1.0)["output"].sum().backward()
    gradient = trained.generator.up[-1][1].bias.grad
    assert gradient.tolist() == [2 * SIDE * SIDE, 0, 0, 0]


def test_heads_must_leave_a_channel_for_the_image() -> None:
    with pytest.raises(InputError, match="leave no image"):
        method("unet_l1", channels=2, heads=2, features=(4, 8))


def test_pix2pix_says_which_features_a_unet_needs() -> None:
    with pytest.raises(InputError, match="five resolutions"):
        method("pix2pix", generator="unet", features=(4, 8))


def test_pix2pix_counts_errors_inside_the_mask_only() -> None:
    trained = method("unet_l1", features=(4, 8, 8), dropout=0.0)
    batch = images()
    batch["mask"][..., : SIDE // 2] = 0
    changed = {**batch, "target": batch["target"].clone()}
    changed["target"][..., : SIDE // 2] += 100
    one, other = (parts_of(trained, b)["generator"]["loss"] for b in (batch, changed))
    assert torch.equal(one, other)


def test_the_spread_head_leaves_the_errors_gradient_alone() -> None:
    """Only the spread's own channel moves if the weight of all else is taken away."""
    trained = method("unet_l1", features=(4, 8, 8), dropout=0.0)
    batch = images()
    made = trained(batch["image"])
    made.spread_loss(batch["target"], batch["mask"]).backward()
    gradient = trained.generator.up[-1][1].weight.grad
    assert torch.all(gradient[:, 0] == 0)
    assert torch.any(gradient[:, 1] != 0)


# ---- Networks. ----


@pytest.mark.parametrize(("layers", "expected"), [(1, 16), (2, 34), (3, 70)])
def test_patches_have_the_size_that_the_paper_says(layers: int, expected: int) -> None:
    side = 128
    critic = PatchGAN(2, 1, width=1, layers=layers, normal=False).double()
    for weight in critic.parameters():
        nn.init.constant_(weight, 0.1)
    image = torch.ones(1, 1, side, side, dtype=torch.float64, requires_grad=True)
    patches = critic(image)[0]
    middle = patches.shape[-1] // 2
    patches[0, 0, middle, middle].backward()
    assert image.grad is not None
    seen = image.grad[0, 0].abs().sum(0).nonzero()
    assert int(seen.max() - seen.min()) + 1 == expected


@pytest.mark.parametrize("dims", [2, 3])
def test_generators_have_as_many_weights_as_the_papers(dims: int) -> None:
    """CycleGAN's ResNet-9 has 11.378 million in 2-D and pix2pix's U-Net 54.4 million."""
    if dims == 3:
        network = ResNetTranslator(3, 1, 2, width=4, blocks=1)
        assert network(torch.rand(1, 1, 8, 8, 12)).shape == (1, 2, 8, 8, 12)
        return
    with torch.device("meta"):
        resnet = ResNetTranslator(2, 3, 3, width=64, blocks=9)
        features = (64, 128, 256, 512, 512, 512, 512, 512)
        unet = UNetTranslator(2, 3, 3, features=features, dropout=0.5)
    convolutions = [7 * 7 * 3 * 64, 9 * 64 * 128, 9 * 128 * 256, *[9 * 256 * 256] * 18]
    convolutions += [9 * 256 * 128, 9 * 128 * 64, 7 * 7 * 64 * 3 + 3]
    assert sum(w.numel() for w in resnet.parameters()) == sum(convolutions)
    assert sum(w.numel() for w in unet.parameters()) == pytest.approx(54.4e6, rel=2e-3)


def test_folding_is_no_more_than_another_order_of_voxels() -> None:
    folded = ResNetTranslator(2, 1, 1, width=4, blocks=1, folding=2)
    assert folded.divisor == 8
    assert folded.encode(torch.rand(1, 1, 16, 16))[0].shape == (1, 4, 8, 8)
    assert folded(torch.rand(1, 1, 16, 24)).shape == (1, 1, 16, 24)
