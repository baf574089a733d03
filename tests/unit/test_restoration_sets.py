"""Pairs for restoration: what is damaged, what is true, and what belongs to which side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from medgen import restoration_sets
from medgen.anatomy import Subject
from medgen.errors import InputError, LeakageError
from medgen.holed_slabs import cut_holes, fill
from medgen.restoration_sets import RestorationSource, value_range
from medgen.restoration_settings import RestorationConfig

PHANTOMS = {"kind": "phantoms", "heads": 2, "shape": (32, 36, 32)}
TASKS = ("inpaint", "super_resolve", "denoise", "translate")


def source(task: str, **values: Any) -> RestorationSource:
    given = {
        "anatomy": PHANTOMS,
        "size": (32, 40),
        "spacing_mm": 5.0,
        "batch_size": 6,
        "input_slices": 3,
        "slices_per_slab": 3,
        "slice_stride": 2,
        **values,
    }
    return RestorationSource(RestorationConfig.model_validate({"task": task, **given}))


def middle(made: RestorationSource, batch: dict[str, Tensor]) -> Tensor:
    """All channels of the middle slice, (B, C, H, W)."""
    first = made.channels * (made.config.input_slices // 2)
    return batch["image"][:, first : first + made.channels]


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of 26 x 30 x 22 voxels of 2 mm."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for number in range(6):
        voxels = rng.random((26, 30, 22)).astype(np.float32) * 900 + number
        nibabel.save(
            nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1])), folder / f"p{number}.nii"
        )
    return folder


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_has_the_promised_form_and_repeats(task: str, dims: int) -> None:
    shape = (32, 40) if dims == 2 else (16, 24, 20)
    slices = 3 if dims == 2 else 1
    made = source(task, spatial_dims=dims, size=shape, input_slices=slices)
    batch = made.batch(3)
    assert batch["image"].shape == (6, slices * made.channels, *shape)
    assert batch["target"].shape == batch["mask"].shape == (6, 1, *shape)
    assert made.channels == {"inpaint": 2, "translate": 4}.get(task, 1)
    assert all(value.dtype == torch.float32 for value in batch.values())
    assert all(torch.isfinite(value).all() for value in batch.values())
    assert set(batch["mask"].unique().tolist()) <= {0.0, 1.0}
    made.batch(0)
    again, other = made.batch(3), made.batch(4)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert not torch.equal(batch["image"], other["image"])
    assert not torch.equal(batch["image"], made.validation_batch(3)["image"])


def test_a_hole_is_cut_and_nothing_else_is_changed() -> None:
    made = source("inpaint", batch_size=24)
    batch = made.batch(0)
    image, hole = middle(made, batch).split(1, dim=1)
    assert torch.equal(hole, batch["mask"])
    assert (hole.flatten(1).sum(1) > 0).all()
    assert torch.equal(image * (1 - hole), batch["target"] * (1 - hole))
    inside = hole > 0
    assert float((image - batch["target"])[inside].abs().mean()) > 0.03
    # The slices around have the hole too.
    assert float(batch["image"][:, [1, 5]].sum()) > 0


def test_a_hole_holds_what_a_classical_method_makes_of_the_whole_slab(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values in the hole do not count, and all slices of the slab do."""
    made, given = source("inpaint", slab_margin=4, noise={"gaussian": (0, 0)}), []

    def spy(image: Tensor, hole: Tensor) -> Tensor:
        filled = fill(torch.where(hole, 99.0, image), hole)
        given.append((image, hole, filled))
        return filled

    monkeypatch.setattr(restoration_sets, "fill", spy)
    image, hole = middle(made, made.batch(0)).split(1, dim=1)
    slab, holes, filled = given[0]
    assert len(slab) == 4 + 3 + 2 * 2 + 4
    assert len(given) == 2
    for example in range(3):
        place = 4 + 1 + 2 * example
        assert torch.equal(hole[example, 0] > 0, holes[place])
        # The same up to the scale, which no value in a hole has a part in.
        known = ~holes[place] & (image[example, 0] != 0)
        if int(known.sum()) < 100 or not holes[place].any():
            continue
        x, y = slab[place][known].double(), image[example, 0][known].double()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum()
        expected = y.mean() + slope * (filled[place] - x.mean())
        inside = holes[place]
        assert torch.allclose(
            image[example, 0][inside].double(), expected[inside].double(), atol=2e-3
        )


def test_a_volume_has_holes_in_as_many_slices_as_asked() -> None:
    def holes(count: int) -> Tensor:
        made = source(
            "inpaint", spatial_dims=3, input_slices=1, size=(32, 32, 32), batch_size=8,
            holes_per_volume=count, holes={"box": (4, 8)},
        )  # fmt: skip
        return made.batch(0)["mask"][:, 0]

    one, eight = holes(1), holes(8)
    assert (eight[:, [14, 18]].flatten(2).sum(-1) > 0).all()  # the outer ones may have no tissue
    assert eight.sum() > 3 * one.sum()


def pooled(**values: Any) -> RestorationSource:
    return source("inpaint", pool=3, batch_size=4, **values)


def test_a_pool_deals_the_same_batches_in_any_order() -> None:
    first, second = pooled(), pooled()
    ahead = [first.batch(n) for n in range(8)]
    for number in (7, 2, 4, 0):
        again = second.batch(number)
        assert all(torch.equal(ahead[number][name], again[name]) for name in again)
    assert not torch.equal(ahead[0]["image"], pooled(seed=1).batch(0)["image"])
    assert all(value.dtype == torch.float32 for batch in ahead for value in batch.values())


def test_a_pool_deals_every_example_once_a_round_in_another_order_and_mirrored() -> None:
    made, plain = pooled(), source("inpaint", batch_size=4)
    drawn = [tuple(sorted(row.flatten().tolist())) for n in range(3)
             for row in plain.batch(n)["target"].half().float()]  # fmt: skip
    rounds = [
        [tuple(sorted(row.flatten().tolist())) for n in range(first, first + 3)
         for row in made.batch(n)["target"]]
        for first in (0, 3, 6)
    ]  # fmt: skip
    assert rounds[0] == drawn
    assert len(set(drawn)) == 12
    assert all(sorted(dealt) == sorted(drawn) for dealt in rounds)
    assert rounds[1] != drawn and rounds[2] != rounds[1]
    # Image, truth and mask are mirrored alike, and not always.
    turned = []
    for number in range(3):
        batch, original = made.batch(number), plain.batch(number)
        image, hole = middle(made, batch).split(1, dim=1)
        assert torch.equal(hole, batch["mask"])
        assert torch.equal(image * (1 - hole), batch["target"] * (1 - hole))
        turned += [
            not torch.equal(a, b.half().float())
            for a, b in zip(batch["target"], original["target"], strict=True)
        ]
    assert 0 < sum(turned) < 12


def test_a_pool_holds_nothing_of_validation() -> None:
    made, plain = pooled(), source("inpaint", batch_size=4)
    made.batch(0)
    assert torch.equal(made.validation_batch(0)["image"], plain.validation_batch(0)["image"])
    drawn: list[bool] = []
    batch = made._batch

    def spy(number: int, *, held_out: bool) -> Any:
        drawn.append(held_out)
        return batch(number, held_out=held_out)

    made._batch = spy  # type: ignore[method-assign, assignment]
    made.batch(4)
    assert drawn == [False, False]


def test_holes_leave_enough_of_the_tissue_to_fill_them_from() -> None:
    tissue = torch.zeros(11, 32, 40, dtype=torch.bool)
    tissue[:, 4:28, 4:36] = True
    kinds = {"box": (60.0, 200.0), "blob": (5.0, 10.0)}
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        hole = cut_holes(tissue, (2, 5, 8), kinds, 5.0, 0.6, generator)
        assert all(hole[place].any() for place in (2, 5, 8))
        # The smallest holes may come on top.
        assert float((hole & tissue).sum()) < 0.9 * float(tissue.sum())
        small = cut_holes(tissue, (5,), {"blob": (20.0, 20.0)}, 5.0, 0.3, generator)
        assert 0 < float((small & tissue).sum()) <= 0.3 * float(tissue.sum())


def test_denoising_without_noise_is_the_identity_and_with_it_is_not() -> None:
    clean = source("denoise", noise={"gaussian": (0, 0)})
    batch = clean.batch(0)
    assert torch.allclose(middle(clean, batch), batch["target"], atol=1e-5)
    noisy = source("denoise", noise={"gaussian": (0.1, 0.1)})
    batch = noisy.batch(0)
    error = (middle(noisy, batch) - batch["target"])[batch["mask"] > 0]
    # A tenth of the range before the noise itself widens the range.
    assert 0.05 < float(error.std()) < 0.11


def test_motion_and_shading_damage_the_input_only() -> None:
    still = source("denoise", noise={"gaussian": (0, 0)})
    for damage in ({"motion": 1.0}, {"shading": (0.3, 0.3)}):
        made = source("denoise", noise={"gaussian": (0, 0)}, **damage)
        batch = made.batch(0)
        assert float((middle(made, batch) - batch["target"]).abs().mean()) > 0.01
        # The first truth, drawn before any damage, is the same up to its scale.
        pair = torch.stack([batch["target"][0].flatten(), still.batch(0)["target"][0].flatten()])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.99


def test_large_voxels_blur_the_axes_they_are_large_along() -> None:
    made = source("super_resolve", factors=((1, 1, 4),), noise={"gaussian": (0, 0)}, size=(32, 64))
    batch = made.batch(1)
    image, target = middle(made, batch), batch["target"]
    along = [
        float(image.diff(dim=d).square().mean() / target.diff(dim=d).square().mean())
        for d in (2, 3)
    ]
    assert along[1] < 0.95 * along[0]
    kept = source("super_resolve", factors=((1, 1, 1.0001),), noise={"gaussian": (0, 0)})
    batch = kept.batch(1)
    close = (middle(kept, batch) - batch["target"]).abs()[batch["mask"] > 0]
    assert float(close.mean()) < 0.1


def test_translation_pairs_show_one_anatomy_and_say_which_contrast_is_wanted() -> None:
    made = source("translate", sources=("t1",), targets=("t1", "t2", "flair"), batch_size=24)
    batch = made.batch(0)
    planes = middle(made, batch)[:, 1:]
    assert torch.equal(planes.sum(1), torch.ones_like(planes[:, 0]))
    wanted = planes[:, :, 0, 0].argmax(1)
    assert torch.equal(
        planes, torch.nn.functional.one_hot(wanted, 3).float()[..., None, None].expand_as(planes)
    )
    # T1 is never asked for where T1 is given.
    assert set(wanted.tolist()) == {1, 2}
    assert torch.equal(batch["image"][:, 1:4], batch["image"][:, 5:8])
    brains = PHANTOMS | {"with_skull": 0.0}
    single = source("translate", anatomy=brains, sources=("t1",), targets=("t2",), batch_size=24)
    batch = single.batch(0)
    assert single.channels == 1
    image, target, mask = middle(single, batch), batch["target"], batch["mask"] > 0
    whole = [n for n in range(24) if int(mask[n].sum()) > 300]
    # In T1 white matter is bright and fluid dark, in T2 it is the other way round.
    signs = [
        float(torch.corrcoef(torch.stack([image[n][mask[n]], target[n][mask[n]]]))[0, 1])
        for n in whole
    ]
    assert np.median(signs) < 0


def test_lesions_are_at_one_place_with_the_sign_of_the_contrast() -> None:
    made = source("translate", sources=("flair",), targets=("t1",))
    anatomy = made.anatomy
    assert anatomy is not None
    labels = torch.full((8, 24, 24), anatomy.values.index(2))
    generator = torch.Generator().manual_seed(1)
    anatomy.config = anatomy.config.model_copy(
        update={"healthy_fraction": 0.0, "faintest_lesion": 0.6}
    )
    flair, t1 = made._two_contrasts(labels, "flair", "t1", generator)
    bright, dark = flair > flair.median() + 0.3, t1 < t1.median() - 0.3
    assert int(bright.sum()) > 20
    assert int((bright & dark).sum()) > 0.6 * int(bright.sum())


@pytest.mark.parametrize("target", ["t2", "flair"])
def test_vessels_are_at_one_place_in_both_contrasts(target: str) -> None:
    anatomy = source("translate").anatomy
    assert anatomy is not None
    labels = torch.full((8, 24, 24), anatomy.values.index(24))  # fluid around the brain
    shown = []
    for contrast in ("t1", target):
        images = [
            anatomy._paint(
                labels, contrast, torch.Generator().manual_seed(0), torch.Generator().manual_seed(n)
            )
            for n in (3, 4)
        ]
        # Nothing but the vessels differs between two draws of them.
        shown.append(images[0] != images[1])
    assert int(shown[0].sum()) > 50
    assert torch.equal(*shown)


def test_values_are_scaled_by_the_input_and_not_clipped() -> None:
    made = source("denoise", noise={"rician": (0.05, 0.1)}, batch_size=3)
    batch = made.batch(2)
    inside = batch["image"][batch["mask"].expand(-1, 3, -1, -1) > 0]
    low, high = torch.quantile(inside, torch.tensor([0.01, 0.99])).tolist()
    assert abs(low) < 0.15 and abs(high - 1) < 0.2
    assert float(batch["image"].max()) > 1.05
    assert float(batch["image"].min()) < 0


def test_the_range_is_that_of_the_tissue() -> None:
    image = torch.linspace(0, 1, 40_000).reshape(20, 40, 50)
    low, high = value_range(image, image > 0.5)
    assert low == pytest.approx(0.505, abs=0.005)
    assert high == pytest.approx(0.995, abs=0.005)
    low, high = value_range(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool))
    assert high > low


@pytest.mark.parametrize("task", TASKS)
def test_validation_sees_held_out_heads_only(task: str) -> None:
    made = source(task)
    anatomy = made.anatomy
    assert anatomy is not None
    seen: list[int] = []
    cut = anatomy._cut

    def spy(subject: Subject, *rest: Any) -> Any:
        seen.append(subject.labels.data_ptr())
        return cut(subject, *rest)

    anatomy._cut = spy  # type: ignore[method-assign, assignment]
    made.batch(0)
    training = {subject.labels.data_ptr() for subject in anatomy.subjects}
    assert set(seen) <= training
    seen.clear()
    made.validation_batch(0)
    assert seen and not set(seen) & training


def test_real_scans_take_their_share_and_validation_sees_held_out_ones_only(scans: Path) -> None:
    made = source("denoise", images={"folder": scans}, image_share=0.5)
    assert made.facts["images"] + made.facts["held_out_images"] == 6
    assert made.real_images == 3
    assert made.images is not None
    patches: list[Any] = []
    patch = made.images.patch

    def spy(scans: Any, *rest: Any) -> Any:
        patches.append(scans)
        return patch(scans, *rest)

    made.images.patch = spy  # type: ignore[method-assign, assignment]
    assert made.batch(0)["image"].shape[0] == 6
    made.validation_batch(0)
    assert patches[0] is made.images.training and patches[-1] is made.images.held_out
    only = source("inpaint", anatomy=None, images={"folder": scans}, size=(16, 16))
    assert only.real_images == 6
    batch = only.batch(0)
    image, hole = middle(only, batch).split(1, dim=1)
    assert torch.equal(image * (1 - hole), batch["target"] * (1 - hole))


def test_a_source_knows_whether_it_holds_anything_out(scans: Path) -> None:
    assert source("denoise", images={"folder": scans}).holds_out
    every = {"folder": scans, "validation_fraction": 0}
    assert not source("denoise", images=every).holds_out
    assert not source("denoise", anatomy=None, images=every).holds_out
    alone = source("denoise")
    assert alone.holds_out and alone.anatomy is not None
    alone.anatomy.validation_subjects = []
    assert not alone.holds_out


def test_what_a_patch_has_beyond_its_scan_does_not_count(scans: Path) -> None:
    made = source(
        "denoise", anatomy=None, images={"folder": scans, "spacing_mm": None}, size=(40, 40)
    )
    batch = made.batch(0)
    inside = batch["mask"].flatten(1).sum(1)
    assert (inside <= 30 * 26).all() and (inside >= 22 * 26).all()
    # Reflected, so there is an image everywhere.
    assert float(batch["image"].flatten(2).std(2).min()) > 0.1


def test_real_scans_are_resampled_to_the_voxel_size(scans: Path) -> None:
    made = source("denoise", anatomy=None, images={"folder": scans}, spacing_mm=4.0, size=(8, 8))
    assert made.images is not None
    assert {tuple(scan.shape) for scan in made.images.training} == {(13, 15, 11)}


def test_pictures_are_slices(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    made = source(
        "denoise", anatomy=None, images={"folder": tmp_path}, input_slices=1, size=(32, 32)
    )
    batch = made.batch(0)
    assert batch["image"].shape == (6, 1, 32, 32)
    assert float(batch["mask"].min()) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"anatomy": None}, "nothing to draw from"),
        ({"anatomy": {"kind": "atlas"}}, "label_maps, phantoms"),
        (
            {"anatomy": {"kind": "phantoms", "size": (8, 8)}},
            "data.anatomy.size must be set as data.size",
        ),
        ({"anatomy": {"kind": "phantoms", "headz": 3}}, "data.anatomy.headz"),
        ({"task": "inpaint", "holes": {"lesion_shape": (5, 9)}}, "no lesion shapes"),
        ({"task": "translate", "images": {"folder": "x"}}, "two"),
        ({"images": {"folder": "nowhere"}}, "no folder"),
    ],
)
def test_wrong_data_are_refused(values: dict[str, Any], words: str) -> None:
    values = dict(values)
    with pytest.raises(InputError, match=words):
        source(values.pop("task", "denoise"), **values)


@pytest.mark.parametrize(
    ("task", "values"),
    [
        ("denoise", {"noise": {"speckle": (0, 1)}}),
        ("denoise", {"noise": {"gaussian": (0.2, 0.1)}}),
        ("denoise", {"size": (8, 8, 8)}),
        ("denoise", {"shading": (0.2, 0.1)}),
        ("inpaint", {"holes": {}}),
        ("inpaint", {"holes": {"blob": (0, 3)}}),
        ("super_resolve", {"factors": ((1, 1, 1),)}),
        ("super_resolve", {"factors": ((2, 2),)}),
        ("super_resolve", {"psf": (0, 1)}),
        ("translate", {"targets": ()}),
        ("translate", {"targets": ("random",)}),
        ("colourise", {}),
    ],
)
def test_wrong_settings_are_refused(task: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RestorationConfig.model_validate({"task": task, "anatomy": PHANTOMS, **values})


def test_a_scan_on_both_sides_is_a_leak(scans: Path, tmp_path: Path) -> None:
    first = (scans / "p0.nii").read_bytes()
    for number in range(8):
        (tmp_path / f"same{number}.nii").write_bytes(first)
    with pytest.raises(LeakageError):
        source("denoise", anatomy=None, images={"folder": tmp_path})
