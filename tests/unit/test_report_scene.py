"""Left is left: scans of every orientation are turned to the labelled side."""

from __future__ import annotations

from dataclasses import fields
from itertools import permutations, product

import numpy as np
import pytest
from report_cases import detection, lesion_scan

from medgen.report.frame import PLANES, cut
from medgen.report.picture import (
    grey,
    inferno,
    map_picture,
    outlined,
    picture_size,
    scan_picture,
    thumbnail,
)
from medgen.report.scene import DetectionLike, FindingLike, build_scene
from medgen.scoring import Finding
from medgen.tasks.detect import Detection

ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))
SPACING = np.array([1.0, 2.0, 3.0])


def turned(array: np.ndarray, order: tuple, signs: tuple) -> tuple[np.ndarray, np.ndarray]:
    """A RAS array stored in another orientation, and the affine that says so."""
    stored = array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * SPACING[world]
        if sign < 0:
            affine[world, 3] = SPACING[world] * (array.shape[world] - 1)
    return stored, affine


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_marker_appears_on_its_labelled_side(order: tuple, signs: tuple) -> None:
    array = np.full((9, 11, 13), 100.0, dtype=np.float32)
    left_front_top = (1, 9, 11)  # RAS: x small is left, y large is front, z large is top
    array[left_front_top] = 1000
    stored, affine = turned(array, order, signs)
    scene = build_scene(detection(stored[None], (stored > 500).astype(np.float32), affine))
    finding = detection(stored[None], (stored > 500).astype(np.float32), affine).findings[0]
    sides = {"axial": ("L", "A"), "coronal": ("L", "S"), "sagittal": ("A", "S")}
    for plane in PLANES:
        picture = cut(scene.scan, plane, scene.focus(finding)[plane.normal])
        row, column = np.argwhere(picture > 500)[0]
        height, width = picture.shape
        horizontal = plane.letters[0] if column < width / 2 else plane.letters[1]
        vertical = plane.letters[2] if row < height / 2 else plane.letters[3]
        assert (horizontal, vertical) == sides[plane.name]
    at = scene.focus(finding)
    np.testing.assert_allclose(scene.geometry.to_world(at), SPACING * left_front_top, atol=1e-9)
    voxel = [0, 0, 0]
    for axis in range(3):
        voxel[scene.source_axes[axis]] = scene.source_index(axis, at[axis])
    assert stored[tuple(voxel)] == 1000


def test_an_oblique_scan_keeps_its_planes_and_its_world() -> None:
    case = lesion_scan()
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = detection(case.volume.voxels, case.map, affine)
    scene = build_scene(oblique)
    finding = oblique.findings[0]
    screen = scene.to_screen(finding.centroid_voxel)
    np.testing.assert_allclose(scene.geometry.to_world(screen), finding.centroid_mm, atol=1e-6)


@pytest.mark.parametrize("spacing", [(1, 1, 4), (3, 1, 1), (0.5, 2, 1)])
def test_a_ball_is_drawn_round_whatever_the_voxels(spacing: tuple[float, ...]) -> None:
    shape = [int(64 / mm) for mm in spacing]
    axes = np.meshgrid(
        *[(np.arange(n) - n / 2 + 0.5) * mm for n, mm in zip(shape, spacing, strict=True)],
        indexing="ij",
    )
    ball = (sum(axis**2 for axis in axes) < 20**2).astype(np.float32)
    scene = build_scene(detection(ball[None], np.zeros(shape), np.diag([*spacing, 1])))
    at = scene.focus(None)
    for plane in scene.planes:
        size = picture_size(scene, plane, 5)
        picture = scan_picture(scene, plane, at[plane.normal], size)[..., 0] > 127
        height, width = picture.any(axis=1).sum(), picture.any(axis=0).sum()
        assert height == pytest.approx(width, abs=5 * max(spacing))
        assert height == pytest.approx(200, abs=5 * max(spacing))


def test_empty_space_is_cropped_and_findings_are_kept() -> None:
    scan = np.zeros((60, 60, 60), dtype=np.float32)
    scan[20:40, 20:40, 20:40] = 100
    scores = np.zeros_like(scan)
    scores[55, 30, 30] = 1
    brain = scan > 0
    scene = build_scene(detection(scan[None], scores, brain_mask=brain), margin_mm=2)
    assert scene.map.shape == (56 + 2 - 18, 24, 24)
    assert scene.mask.sum() == 1


def test_the_restored_image_is_shown_like_the_scan() -> None:
    case = lesion_scan()
    restored = np.where(case.mask, 400, case.volume.voxels[0])
    scene = build_scene(lesion_scan(restored=restored))
    assert scene.restored is not None
    np.testing.assert_array_equal(scene.restored[~scene.mask], scene.scan[~scene.mask])
    assert (scene.restored[scene.mask] == 400).all()


def test_pictures_have_one_plane_and_no_left() -> None:
    colour = np.zeros((3, 20, 30), dtype=np.float32)
    colour[0, 2, 3] = 255  # third pixel of the fourth row, red
    scores = np.zeros((20, 30))
    affine = np.diag([-1.0, -1, 1, 1])
    scene = build_scene(detection(colour, scores, affine, format="png"))
    assert [plane.name for plane in scene.planes] == ["axial"]
    assert not scene.anatomical
    picture = cut(scene.scan, scene.planes[0], 0)
    assert picture.shape == (30, 20, 3)
    assert picture[3, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("codes", ["RA", "RS", "AS"])
def test_a_slice_is_shown_in_its_own_plane(codes: str) -> None:
    affine = np.eye(4)
    axes = ["RAS".index(code) for code in codes]
    affine[:3, :3] = np.eye(3)[:, [*axes, 3 - sum(axes)]]
    scene = build_scene(detection(np.ones((1, 12, 14)), np.zeros((12, 14)), affine))
    wanted = {"RA": "axial", "RS": "coronal", "AS": "sagittal"}
    assert [plane.name for plane in scene.planes] == [wanted[codes]]


def test_the_scale_reaches_above_the_threshold_even_where_nothing_is_found() -> None:
    scene = build_scene(lesion_scan(count=0))
    assert scene.map_maximum > 0.5


def test_grey_is_bounded_and_the_colours_are_inferno() -> None:
    import matplotlib

    values = np.array([[np.nan, -np.inf, 0, 50, 100, 1e9]], dtype=np.float32)
    assert grey(values, 0, 100).tolist() == [[0, 0, 0, 128, 255, 255]]
    reference = matplotlib.colormaps["inferno"](np.arange(256))[:, :3] * 255
    assert np.abs(inferno() - reference).max() < 10


def test_outlines_lie_around_the_mask_and_nowhere_else() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    picture = outlined(np.zeros((200, 200, 3), dtype=np.uint8), mask)
    drawn = picture.any(axis=-1)
    assert drawn.any()
    assert not drawn[60:140, 60:140].any()
    assert not drawn[:40].any()
    assert not outlined(np.zeros((9, 9, 3), dtype=np.uint8), np.zeros((3, 3), bool)).any()


def test_thumbnails_are_square_at_the_edge_too() -> None:
    scores = np.zeros((30, 30, 30), dtype=np.float32)
    scores[0, 0, 0] = 1
    case = detection(scores[None] + 1, scores)
    picture = thumbnail(build_scene(case), case.findings[0], 80)
    assert picture.shape == (80, 80, 3)
    assert map_picture(build_scene(case), PLANES[0], 29, (40, 50)).shape == (50, 40, 3)


def test_the_real_detection_has_what_a_report_needs() -> None:
    assert set(DetectionLike.__annotations__) <= {field.name for field in fields(Detection)}
    assert set(FindingLike.__annotations__) <= {field.name for field in fields(Finding)}
