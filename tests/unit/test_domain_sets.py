"""Domains: pairs stay pairs, unpaired draws do not use them, and held-out files stay apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from medgen.domain_sets import Domains, DomainsConfig
from medgen.errors import InputError, LeakageError

COUNT = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty slices in two domains; b is the negative of a, and every file has its own level."""
    base = tmp_path_factory.mktemp("domains")
    for name in ("a", "b", "c"):
        (base / name).mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        picture = rng.integers(0, 60, (24, 32)) + 8 * number
        for name, shown in (("a", picture), ("b", 255 - picture), ("c", picture // 2)):
            # Numbers without leading zeros: 10 comes after 9.
            Image.fromarray(shown.astype(np.uint8)).save(base / name / f"s{number}.png")
    return base


def domains(folder: Path, **values: Any) -> Domains:
    given = {
        "folder": folder,
        "domains": {"a": "a", "b": "b"},
        "source": "a",
        "target": "b",
        "batch_size": 6,
        "gap": 2,
        **values,
    }
    return Domains(DomainsConfig.model_validate(given))


def test_a_pair_is_moved_alike(folder: Path) -> None:
    made = domains(folder, paired=True)
    for number in range(3):
        batch = made.batch(number)
        assert batch["image"].shape == batch["target"].shape == (6, 1, 32, 24)
        # b = 255 - a wherever both are turned, zoomed and shifted alike.
        assert torch.allclose(batch["image"] + batch["target"], batch["mask"], atol=1e-4)
    assert not torch.equal(made.batch(0)["image"], made.batch(1)["image"])
    assert torch.equal(made.batch(1)["image"], made.batch(1)["image"])
    assert (made.channels, made.out_channels, made.image_size) == (1, 1, (32, 24))


def test_unpaired_draws_do_not_use_the_pairing(folder: Path) -> None:
    made = domains(folder, mirror=False, shift=0, zoom=0)
    together, total = 0, 0
    seen: set[float] = set()
    for number in range(40):
        batch = made.batch(number)
        sums = (batch["image"] + batch["target"]).mean((1, 2, 3))
        together += int(((sums - 1).abs() < 1e-3).sum())
        total += len(sums)
        seen |= {round(float(value), 3) for value in batch["image"].mean((1, 2, 3))}
    # By chance one of thirteen; in step it would be all.
    assert together / total < 0.25
    assert len(seen) == 13


def test_the_last_files_are_held_out_with_a_gap_in_every_domain_alike(folder: Path) -> None:
    made = domains(folder)
    for name in ("a", "b"):
        assert [stem for stem, _ in made.items(name, "train")] == [f"s{n}" for n in range(13)]
        assert [stem for stem, _ in made.items(name, "held_out")] == [
            f"s{n}" for n in range(15, 20)
        ]
    image = made.items("a", "held_out")[0][1]
    assert image.shape == (1, 32, 24)
    assert 0 <= float(image.min()) < float(image.max()) <= 1
    facts = made.facts
    assert (facts["images"], facts["held_out_images"]) == (26, 10)


def test_validation_is_aligned_where_names_agree_and_says_so_where_not(
    folder: Path, tmp_path: Path
) -> None:
    batch = domains(folder).validation_batch(0)
    assert torch.allclose(batch["image"] + batch["target"], batch["mask"], atol=1e-4)
    held = {round(float(i.mean()), 4) for _, i in domains(folder).items("a", "held_out")}
    assert {round(float(i.mean()), 4) for i in batch["image"]} <= held
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in (folder / name).iterdir():
            (tmp_path / name / f"{name}{path.name}").write_bytes(path.read_bytes())
    made = domains(tmp_path, held_out_fraction=0.25, gap=0, split="group")
    assert "mask" not in made.validation_batch(0)


def test_between_any_domains_every_image_is_to_become_another(folder: Path) -> None:
    made = domains(
        folder, domains={"a": "a", "b": "b", "c": "c"}, source=None, target=None, batch_size=9
    )
    assert made.channels == 4
    seen = set()
    for number in range(4):
        batch = made.batch(number)
        assert batch["image"].shape == (9, 4, 32, 24)
        assert (batch["domain"] != batch["wanted"]).all()
        assert batch["domain"].dtype == batch["wanted"].dtype == torch.int64
        planes = batch["image"][:, 1:]
        assert torch.equal(planes[:, :, 5, 5].argmax(1), batch["wanted"])
        assert torch.equal(planes.sum(1), torch.ones(9, 32, 24))
        assert "target" not in batch
        seen |= set(zip(batch["domain"].tolist(), batch["wanted"].tolist(), strict=True))
    assert len(seen) == 6
    batch = made.validation_batch(0)
    for n in range(9):
        where, to = int(batch["domain"][n]), int(batch["wanted"][n])
        if {where, to} == {0, 1}:
            assert torch.allclose(batch["image"][n, :1] + batch["target"][n], torch.ones(1, 32, 24))


def test_no_place_of_a_batch_belongs_to_one_domain(folder: Path) -> None:
    """StarGAN's generator learns from the last part of each batch: it must see every domain."""
    made = domains(folder, source=None, target=None, batch_size=2)
    orders = [tuple(made.batch(number)["domain"].tolist()) for number in range(30)]
    assert {sum(order) for order in orders} == {1}  # one of each
    assert 5 < sum(last for _, last in orders) < 25


def test_groups_can_be_held_out_instead(folder: Path) -> None:
    made = domains(folder, split="group", group_pattern=r"s(\d)", held_out_fraction=0.3)
    sides = [{stem[1] for stem, _ in made.items("a", side)} for side in ("train", "held_out")]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert {stem for stem, _ in made.items("a", "held_out")} == {
        stem for stem, _ in made.items("b", "held_out")
    }


def test_images_can_be_resampled(folder: Path) -> None:
    assert domains(folder, size=(16, 12)).batch(0)["image"].shape == (6, 1, 16, 12)


@pytest.mark.parametrize(
    "values",
    [
        {"source": "a", "target": "a"},
        {"source": "a", "target": None},
        {"source": "a", "target": "pet"},
        {"source": None, "target": None, "paired": True},
        {"domains": {"a": "a"}},
        {"size": (4, 4, 4)},
    ],
)
def test_wrong_settings_are_refused(folder: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        domains(folder, **values)


def test_wrong_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder of the domain 'b'"):
        domains(folder, domains={"a": "a", "b": "elsewhere"})
    with pytest.raises(InputError, match="too few to hold out"):
        domains(folder, gap=15)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in (folder / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    (tmp_path / "b" / "s3.png").unlink()
    with pytest.raises(InputError, match=r"no partner.*s3"):
        domains(tmp_path, paired=True)
    Image.fromarray(np.arange(30 * 30, dtype=np.uint16).astype(np.uint8).reshape(30, 30)).save(
        tmp_path / "b" / "s3.png"
    )
    with pytest.raises(InputError, match="differ"):
        domains(tmp_path)


def test_one_image_on_both_sides_is_a_leak(folder: Path, tmp_path: Path) -> None:
    content = (folder / "a" / "s1.png").read_bytes()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(8):
            (tmp_path / name / f"t{number}.png").write_bytes(content)
    with pytest.raises(LeakageError):
        domains(tmp_path, split="group")
