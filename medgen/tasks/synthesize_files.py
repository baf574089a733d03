"""The files of a synthesis: images, label maps, what each was made from, pictures, ``run.json``.

``images/`` and ``labels/`` hold one file per image under the same name, so that the folder can be
trained on as it is. Every file but ``run.json`` is the same bytes for the same request.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medgen.errors import InputError
from medgen.run_record import fingerprint, hash_file, run_record, timed
from medgen.tasks.detect_files import write_json
from medgen.tasks.grids import as_picture, grid_of
from medgen.tasks.nearest import UNKNOWN, TrainingImages, training_images
from medgen.tasks.output_folder import cannot_write, output_folder
from medgen.tasks.sampling import Made

if TYPE_CHECKING:
    from medgen.tasks.running import Progress
    from medgen.tasks.synthesize import Request, Synthesis

FORMATS = ("png", "nifti", "dicom")
ENDINGS = {"png": ".png", "nifti": ".nii.gz", "dicom": ".dcm"}
IMAGES, LABELS, MANIFEST = "images", "labels", "manifest.jsonl"
SHEET, GALLERY, RUN = "contact_sheet.png", "gallery.html", "run.json"
# Blocks whose files may still be being written while the next ones are computed.
PENDING = 2


def output_names(wish: Request) -> dict[str, str]:
    """Names of what a synthesis writes, by what it is; folders are replaced as a whole."""
    names = {"images": IMAGES, "manifest": MANIFEST}
    names |= {"contact_sheet": SHEET, "gallery": GALLERY, "run": RUN}
    return names | ({"labels": LABELS} if wish.annotated else {})


def checked_format(wish: Request, format: str | None) -> str:
    """The format to write, by default PNG for pictures and NIfTI for volumes.

    Raises:
        InputError: It is unknown, or cannot hold what the model makes.
    """
    channels, *size = wish.image_shape
    if format is None:
        return "png" if len(size) == 2 else "nifti"
    if format not in FORMATS:
        raise InputError(f"unknown format {format!r}; expected {', '.join(FORMATS)}")
    name, modality = wish.package.manifest.name, wish.package.synthesis.modality
    if format == "png" and len(size) == 3:
        raise InputError(f"{name} makes volumes, which PNG cannot hold", "Use --format nifti.")
    if format == "nifti" and channels != 1:
        msg = f"{name} makes colour images; medgen writes grey ones only as NIfTI"
        raise InputError(msg, "Use --format png or dicom.")
    if format == "dicom" and len(size) == 3 and (channels, modality) != (1, "MR"):
        msg = f"{name} makes volumes of {modality}; medgen writes only MR volumes as DICOM"
        raise InputError(msg, "Use --format nifti.")
    return format


def refuse_foreign_images(folder: Path, overwrite: bool) -> None:
    """Refuse to replace a folder of images that no synthesis wrote.

    Raises:
        InputError: There is one.
    """
    foreign = [name for name in (IMAGES, LABELS) if (folder / name).exists()]
    if overwrite and foreign and not (folder / MANIFEST).is_file():
        msg = f"{folder / foreign[0]} was not written by medgen synthesize"
        raise InputError(msg, "It is not replaced. Choose another folder with -o.")


def save_synthesis(
    made: Synthesis,
    folder: Path,
    *,
    format: str | None = None,
    overwrite: bool = False,
    command: str = "synthesize",
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Write everything, or nothing; see :meth:`medgen.tasks.synthesize.Synthesis.save`."""
    wish = made.maker.wish
    chosen = checked_format(wish, format)
    names = output_names(wish)
    refuse_foreign_images(folder, overwrite)
    with output_folder(folder, [*names.values(), LABELS], overwrite=overwrite) as draft:
        try:
            _write(made, draft, chosen, command, progress)
        except OSError as error:
            raise cannot_write(folder, error) from error
    return {kind: folder / name for kind, name in names.items()}


def _write(
    made: Synthesis, folder: Path, format: str, command: str, progress: Progress | None
) -> None:
    wish, timings = made.maker.wish, dict(made.timings)
    near = training_images(wish.package)
    reason = near if isinstance(near, str) else None
    (folder / IMAGES).mkdir()
    if wish.annotated:
        (folder / LABELS).mkdir()
    writer = _Writer(wish, folder, format)
    pictures = _Pictures(made, ending_of(wish, format))
    with timed(timings, "make and write"):
        lines = _write_all(made, near, writer, pictures, progress)
        with (folder / MANIFEST).open("w", encoding="utf-8") as manifest:
            for line in lines:
                manifest.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
    with timed(timings, "draw"):
        pictures.sheet(folder / SHEET)
        pictures.gallery(folder / GALLERY, reason)
    outputs = [folder / MANIFEST, folder / SHEET, folder / GALLERY]
    record = run_record(
        command,
        inputs=[_nameless(path) for path in made.inputs],
        outputs=outputs,
        timings=timings,
        model={
            "name": wish.package.manifest.name,
            "version": wish.package.manifest.version,
            "sha256": wish.package.sha256,
        },
        synthetic=True,
        images=made.count,
        conditions=[wish.condition_name(number) for number in wish.conditions],
        device=made.maker.device,
        seed=wish.seed,
        truncation=wish.truncation,
        format=format,
        nearest_training=reason or "in the features of " + near.extract.name,  # type: ignore[union-attr]
        fallbacks=list(made.fallbacks),
        notes=[*made.notes, *writer.notes],
    )
    write_json(folder / RUN, record)


def _write_all(
    made: Synthesis,
    near: TrainingImages | str,
    writer: _Writer,
    pictures: _Pictures,
    progress: Progress | None,
) -> Iterator[dict[str, Any]]:
    """Write each image while the next are computed; yields the lines of the manifest in order."""
    reason = {"nearest_training_reason": near} if isinstance(near, str) else {}

    def write(one: Made, far: dict[str, float | None]) -> dict[str, Any]:
        pictures.add(one, far)
        return {**writer.write(one), **far, **reason}

    waiting: deque[list[Future[dict[str, Any]]]] = deque()
    done = 0
    # Compressing leaves the interpreter free for the network.
    with ThreadPoolExecutor(2) as pool:
        for block in made.blocks():
            distances = [UNKNOWN] * len(block)
            if isinstance(near, TrainingImages):
                distances = near.nearest(np.stack([one.image for one in block]), made.maker.device)
            waiting.append(
                [pool.submit(write, *pair) for pair in zip(block, distances, strict=True)]
            )
            done += len(block)
            if progress is not None:
                progress(done, made.count)
            if len(waiting) > PENDING:
                yield from (job.result() for job in waiting.popleft())
        for rest in waiting:
            yield from (job.result() for job in rest)


class _Writer:
    """Writes one image after another."""

    def __init__(self, wish: Request, folder: Path, format: str) -> None:
        self.wish, self.folder, self.format = wish, folder, format
        self.grid = grid_of(wish.package.manifest, wish.image_shape[1:])
        write: dict[str, Callable[[Made, Path, dict[str, Any]], None]] = {
            "png": self._png, "nifti": self._nifti, "dicom": self._dicom,
        }  # fmt: skip
        self._image = write[format]
        self.notes: list[str] = []
        if format == "dicom" and wish.annotated:
            self.notes.append("label maps are written as NIfTI beside the DICOM images")

    def write(self, made: Made) -> dict[str, Any]:
        """Write an image and its labels; returns what the manifest says of it."""
        facts = facts_of(self.wish, made)
        stem = stem_of(made)
        path = self.folder / IMAGES / (stem + ending_of(self.wish, self.format))
        self._image(made, path, facts)
        line: dict[str, Any] = {"file": f"{IMAGES}/{path.name}", "sha256": _hash(path)}
        if made.labels is not None:
            labels = self._labels(made.labels, stem, facts)
            line |= {"labels": f"{LABELS}/{labels.name}", "labels_sha256": hash_file(labels)}
        code = made.sample.code
        latent = [float(f"{value:.9g}") for value in code.values.ravel()]
        return {**line, **facts, "latent_space": code.space, "latent": latent}

    def _png(self, made: Made, path: Path, facts: dict[str, Any]) -> None:
        from medgen.io.synthetic import write_png

        write_png(path, as_picture(made.pixels(), self.wish.package.manifest), facts)

    def _nifti(self, made: Made, path: Path, facts: dict[str, Any]) -> None:
        from medgen.io.synthetic import write_synthetic_nifti

        write_synthetic_nifti(path, self._values(made), self.grid, facts)

    def _values(self, made: Made) -> NDArray[Any]:
        """The image in the model's own values ``(*image_size)``: 8 bits if they are 0..255."""
        low, high = self.wish.package.synthesis.value_range
        if (low, high) == (0.0, 255.0):
            return made.pixels()[0]
        return (low + (made.image[0].clip(-1, 1) + 1) / 2 * (high - low)).astype(np.float32)

    def _dicom(self, made: Made, path: Path, facts: dict[str, Any]) -> None:
        from medgen.io.dicom_picture import write_dicom_picture
        from medgen.io.synthetic import WARNING

        package = self.wish.package
        seed = json.dumps([package.sha256, self.wish.seed, self.wish.truncation])
        if made.image.ndim == 4:
            self._dicom_series(made, path, seed)
            return
        spacing = package.synthesis.spacing_mm
        if spacing is not None and self.grid.axis_codes[0] not in "LR":
            spacing = spacing[::-1]
        write_dicom_picture(
            path, as_picture(made.pixels(), package.manifest), seed=seed,
            number=made.sample.index + 1, comment=f"{WARNING} {json.dumps(facts)}",
            modality=package.synthesis.modality, body_part=package.synthesis.body_part,
            spacing_mm=spacing,
        )  # fmt: skip

    def _dicom_series(self, made: Made, path: Path, seed: str) -> None:
        from medgen.io import write_dicom_series
        from medgen.volume import Provenance, Volume

        volume = Volume(self._values(made)[None], self.grid, Provenance(modality="MR"))
        description = f"SYNTHETIC {made.sample.name}"[:64]
        number = made.sample.index + 1
        write_dicom_series(path, volume, seed=seed, series_number=number, description=description)

    def _labels(self, labels: NDArray[np.int64], stem: str, facts: dict[str, Any]) -> Path:
        from medgen.io.synthetic import write_label_png, write_synthetic_nifti

        if self.format == "png":
            path = self.folder / LABELS / f"{stem}.png"
            return write_label_png(path, as_picture(labels, self.wish.package.manifest), facts)
        path = self.folder / LABELS / f"{stem}.nii.gz"
        return write_synthetic_nifti(path, labels.astype(np.uint8), self.grid, facts, label=True)


def facts_of(wish: Request, made: Made) -> dict[str, Any]:
    """What an image was made from, but for its latent: what each file itself carries."""
    sample, manifest = made.sample, wish.package.manifest
    facts: dict[str, Any] = {
        "synthetic": True,
        "model": manifest.name,
        "model_version": manifest.version,
        "model_sha256": wish.package.sha256,
        "index": sample.index,
        "seed": sample.seed,
        "condition": sample.condition,
        "truncation": sample.truncation,
        **sample.details,
    }
    if made.labels is not None:
        facts["label_names"] = list(wish.package.synthesis.label_names)
    return facts


def stem_of(made: Made) -> str:
    """File name of an image without its ending, in characters that every file system takes."""
    name = re.sub(r"[^A-Za-z0-9_.]+", "-", made.sample.name).strip("-.") or "image"
    return f"{made.sample.index:05d}_{name}"


def ending_of(wish: Request, format: str) -> str:
    """Ending of an image's file; none for a DICOM volume, which is a folder of slices."""
    return "" if format == "dicom" and len(wish.image_shape) == 4 else ENDINGS[format]


def _nameless(path: Path) -> dict[str, Any]:
    """A fingerprint without the file's name, which may name a patient."""
    return {key: value for key, value in fingerprint(path).items() if key != "name"}


def _hash(path: Path) -> str:
    return str(fingerprint(path)["sha256"])


def draw_sheet(made: Synthesis, target: Any) -> None:
    """Make the images and write nothing but their contact sheet, to a path or an open file."""
    pictures = _Pictures(made, "")
    for one in made:
        pictures.add(one, UNKNOWN)
    pictures.sheet(target)


class _Pictures:
    """Gathers the images that contact sheet and gallery show."""

    def __init__(self, made: Synthesis, ending: str) -> None:
        from medgen.io.synthetic import label_colours
        from medgen.report.contact_sheet import MOST_TILES, Tile
        from medgen.report.gallery import MOST_IMAGES

        self.made, self.manifest, self.ending = made, made.package.manifest, ending
        self.tiles: dict[int, Tile] = {}  # by number: several threads add
        self.cards: dict[int, dict[str, Any]] = {}
        self.most_tiles = made.count if made.columns else MOST_TILES
        self.most_cards = MOST_IMAGES
        self.colours = label_colours(max(2, len(made.package.synthesis.label_names)))

    def add(self, one: Made, far: dict[str, Any]) -> None:
        """Keep an image, if there is room for it."""
        from medgen.report.contact_sheet import Tile, overlay
        from medgen.report.picture import data_uri

        sample = one.sample
        if sample.index >= max(self.most_cards, self.most_tiles):
            return
        picture = _rows(as_picture(one.pixels(), self.manifest))
        labelled = None
        if one.labels is not None:
            labels = as_picture(one.labels, self.manifest).T
            labelled = overlay(picture, labels, self.colours)
        if sample.index < self.most_tiles:
            shown = picture if labelled is None else _beside(picture, labelled)
            self.tiles[sample.index] = Tile(shown, self._caption(sample.index, sample.name))
        if sample.index < self.most_cards:
            card = {
                "file": f"{IMAGES}/{stem_of(one)}{self.ending}",
                "index": sample.index, "name": sample.name,
                "condition": sample.condition, "origin": _origin(sample),
                "distance": far["nearest_training_distance"],
                "percentile": far["nearest_training_percentile"],
                "picture": data_uri(picture, "png"),
            }  # fmt: skip
            if labelled is not None:
                card["labels"] = data_uri(labelled, "png")
            self.cards[sample.index] = card

    def _caption(self, index: int, name: str) -> str:
        if self.made.signs:
            return f"{self.made.signs[index]} {name}"
        return "" if self.made.columns else f"{index} {name}"

    def sheet(self, target: Any) -> None:
        """Write the contact sheet to a file."""
        from medgen.report.contact_sheet import contact_sheet

        title = f"{self.manifest.name} {self.manifest.version}"
        seed, number = self.made.maker.wish.seed, len(self.tiles)
        shown = f"The first {number} of {self.made.count} images of seed {seed}, not selected."
        if self.made.columns:
            shown = f"{number} images in the latent space, seed {seed}."
        contact_sheet(
            [tile for _, tile in sorted(self.tiles.items())], target, title=title,
            columns=self.made.columns, subtitle=f"{shown} No scan of a patient.",
        )  # fmt: skip

    def gallery(self, path: Path, reason: str | None) -> None:
        """Write the page."""
        from medgen.report.gallery import write_gallery

        wish, manifest = self.made.maker.wish, self.manifest
        title = f"{manifest.name} {manifest.version}"
        names = [wish.condition_name(n) for n in wish.conditions]
        facts = {
            "Model": f"{title} ({manifest.method})",
            "Model hash": f"sha256 {self.made.package.sha256}",
            "Conditions": ", ".join(name for name in names if name) or "none",
            "Seed": str(wish.seed),
            "Truncation": f"{wish.truncation:g}",
            "Training data": "; ".join(
                f"{d.name} ({d.licence}, {d.cases} cases)" for d in manifest.training_data
            )
            or "not stated",
            "Intended use": manifest.intended_use,
        }
        notes = list(self.made.notes)
        if reason is not None:
            notes.append(f"The distance to the nearest training image is not known: {reason}.")
        legend = [
            (name, f"rgb{colour}")
            for name, colour in zip(manifest.synthesis.label_names, self.colours, strict=False)  # type: ignore[union-attr]
        ][1:]
        write_gallery(
            [card for _, card in sorted(self.cards.items())], path, title=title, facts=facts,
            notes=notes, legend=legend, total=self.made.count,
        )  # fmt: skip


def _origin(sample: Any) -> str:
    if sample.seed is not None:
        return f"seed {sample.seed}, image {sample.index}"
    return ", ".join(f"{key} {value}" for key, value in sample.details.items())


def _rows(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(C, X, Y)`` as ``(rows, columns[, 3])``."""
    rows = picture.transpose(2, 1, 0)
    return np.ascontiguousarray(rows[..., 0] if rows.shape[2] == 1 else rows)


def _beside(picture: NDArray[np.uint8], labelled: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    return np.concatenate([colour, labelled], axis=1)
