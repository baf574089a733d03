"""How ``medgen check`` shows what it found: one image in full, many as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medgen.cli.console import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

Image = Mapping[str, Any]

# From this width on there is room for what matters less.
WIDE = 110
# Lines per list without --verbose.
FEW = 10
# Widest list of models, narrowest description, widest transfer syntax.
_MODELS, _DESCRIPTION, _SYNTAX = 28, 16, 24
LISTED = 2  # models that are named; more are counted
# Facts that the list of one image leaves out: shown elsewhere, or by --verbose.
_HIDDEN = {"models", "problems", "blocking", "path", "group"}
_VERBOSE = {"study_uid", "series_uid"}
_USUAL = [("part", 1), ("parts", 1), ("missing_slices", 0)]


def show(result: Mapping[str, Any], console: Console, *, verbose: bool = False) -> None:
    """Print what :func:`medgen.tasks.check.check_source` gave.

    Args:
        result: Of one source.
        console: Decides the width.
        verbose: Show UIDs, the frames of 4-D images and every reason.
    """

    def line(text: str, style: str = "") -> None:
        console.print(plain(text), style=style or None, markup=False, soft_wrap=True)

    line(result["source"], "bold")
    images = result["images"]
    if "error" in result:
        line(f"  {result['error']}", "red")
        line(f"  {result['hint']}", "dim")
    elif len(images) == 1:
        console.print(_details(images[0], verbose))
    else:
        _table(images, console)
        if verbose:
            _list(console, "identifiers", _identifiers(images), verbose)
        _list(console, "cannot be read", _blocked(images), verbose)
        _list(console, "notes", _notes(images), verbose)
        _list(console, "not taken by", _reasons(images), verbose)
    whole = "error" not in result and not (result["kind"] == "file" and len(images) == 1)
    if whole:
        _list(console, "set aside", _set_aside(result["set_aside"], verbose), verbose)
    _list(console, "cannot be opened", _failed(result["failed"]), verbose)
    if whole:
        line(summary(result), "bold")


def summary(result: Mapping[str, Any]) -> str:
    """What was found, in one line."""
    numbers = result["summary"]
    dicom = sum(image["kind"] == "dicom" for image in result["images"])
    parts = []
    if dicom:
        parts += [_count(numbers["studies"], "study", "studies"), _count(dicom, "series", "series")]
    if others := numbers["images"] - dicom:
        parts.append(_count(others, "image"))
    usable = [f"{n} usable by {name}" for name, n in numbers["usable"].items()]
    text = ", ".join([*(parts or ["no image"]), *usable])
    rest = [f"{numbers['blocked']} cannot be read"] if numbers["blocked"] else []
    if aside := numbers["set_aside"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in list(aside.items())[:3])
        reasons += ", ..." if len(aside) > 3 else ""
        rest.append(f"{_count(sum(aside.values()), 'object')} set aside: {reasons}")
    if result["failed"]:
        rest.append(f"{_count(len(result['failed']), 'file')} cannot be opened")
    if result["other_files"]:
        rest.append(_count(result["other_files"], "other file"))
    if result["unreadable_folders"]:
        rest.append(f"{_count(result['unreadable_folders'], 'folder')} could not be opened")
    return "; ".join([text, *rest])


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _details(image: Image, verbose: bool) -> Table:
    """Everything about one image, a line each."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    for key, value in image.items():
        hidden = key in _HIDDEN or (key in _VERBOSE and not verbose) or (key, value) in _USUAL
        if key == "frame_labels" and len(value) > FEW and not verbose:
            value = [*value[:3], "...", value[-1]]
        if not hidden and value is not None and value != []:
            table.add_row(f"[dim]{key.replace('_', ' ')}[/]", escape(_text(value)))
    if blocking := image["blocking"]:
        table.add_row(
            "[red]cannot be read[/]", escape(plain(_without_path(image, blocking["error"])))
        )
        return table
    for problem in image["problems"]:
        table.add_row("[yellow]note[/]", escape(plain(problem)))
    for model in image["models"]:
        why = escape(plain(_without_path(image, model["why"])))
        verdict = (
            f"[green]takes it[/] [dim]({model['task']})[/]"
            if model["takes"]
            else f"[red]no:[/] {why}"
        )
        table.add_row(f"model [b]{escape(model['name'])}[/]", verdict)
    return table


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        between = ", " if any(isinstance(item, str) for item in value) else " x "
        return between.join(_text(item) for item in value)
    return plain(str(value))


# --- the table -------------------------------------------------------------------------------


def _table(images: Sequence[Image], console: Console) -> None:
    """A row per series; columns agree between studies and between folders."""
    from rich.cells import cell_len

    wide = console.width >= WIDE
    rows = [_row(image, wide) for image in images]
    # A column that says nothing is left out.
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    if "frames" in columns and all(row["frames"] == "1" for row in rows):
        columns.remove("frames")
    gap = 2 if wide else 1
    widths = {name: max(cell_len(name), *(cell_len(r[name]) for r in rows)) for name in columns}
    if "transfer syntax" in widths:
        widths["transfer syntax"] = min(widths["transfer syntax"], _SYNTAX)
    widths["taken by"] = min(widths["taken by"], _MODELS if wide else _MODELS // 2)
    widths = _fitted(widths, console.width, gap)
    _print_row({name: name for name in columns}, widths, gap, console, header=True)
    for group, members in _grouped(zip(images, rows, strict=True)).items():
        if members[0][0]["kind"] != "dicom" and group:
            console.print(_text_of(f"{group}/", "bold"), soft_wrap=True)
        for number, (image, row) in enumerate(members):
            if number == 0 and image["kind"] == "dicom":
                row["study"] = group.removeprefix("study ")
            _print_row(row, widths, gap, console)


def _fitted(widths: dict[str, int], width: int, gap: int) -> dict[str, int]:
    """The description takes what is left; if that is too little, columns are left out."""
    longest = widths["description"]
    for dispensable in ("", "transfer syntax", "body part", "frames", "mm", "kind"):
        widths = {name: size for name, size in widths.items() if name != dispensable}
        left = width - sum(size + gap for name, size in widths.items() if name != "description")
        if left >= min(longest, _DESCRIPTION):
            break
    return widths | {"description": min(longest, max(left, _DESCRIPTION))}


def _grouped(
    pairs: Iterable[tuple[Image, dict[str, str]]],
) -> dict[str, list[tuple[Image, dict[str, str]]]]:
    groups: dict[str, list[tuple[Image, dict[str, str]]]] = {}
    for image, row in pairs:
        groups.setdefault(image["group"], []).append((image, row))
    return groups


def _print_row(
    row: Mapping[str, str],
    widths: Mapping[str, int],
    gap: int,
    console: Console,
    *,
    header: bool = False,
) -> None:
    from rich.cells import cell_len
    from rich.text import Text

    line = Text()
    for name, width in widths.items():
        text = _shorten(row[name], width)
        space = " " * (width - cell_len(text))
        style = "dim" if header else _style(name, row)
        line.append(space if name in _NUMBERS else "")
        line.append(text, style or None)
        line.append((space if name not in _NUMBERS else "") + " " * gap)
    line.rstrip()
    console.print(line, no_wrap=True, crop=False, overflow="ignore")


_NUMBERS = ("study", "series", "size", "mm", "frames", "missing")


def _row(image: Image, wide: bool) -> dict[str, str]:
    """Texts of the columns."""
    dicom = image["kind"] == "dicom"
    name = image["series_description"] or "no description" if dicom else Path(image["path"]).name
    row = {
        "study": " " if dicom else "",
        "series": _series(image),
        "description": plain(name),
        "kind": plain(image["modality"] or image["kind"]),
        "body part": plain(image.get("body_part") or ""),
        "size": "x".join(str(length) for length in image["shape"]),
        "mm": "x".join(f"{size:.3g}" for size in image["spacing_mm"] or ()) or "unknown",
        "frames": str(image["frames"]),
        "missing": str(image.get("missing_slices") or ""),
        "transfer syntax": _syntax(image),
        "taken by": _takers(image),
    }
    if not wide:  # what is missing stands below the table too
        del row["body part"], row["missing"], row["transfer syntax"]
    return row


def _syntax(image: Image) -> str:
    """How pixels are stored, in few words."""
    text = plain(image.get("transfer_syntax") or "")
    for long, short in (
        ("Little Endian", "LE"), ("Big Endian", "BE"), (" Image Compression", ""),
        (" (Lossless Only)", " lossless"),
    ):  # fmt: skip
        text = text.replace(long, short)
    return text


def _takers(image: Image) -> str:
    if image["blocking"]:
        return _UNREADABLE
    names = [model["name"] for model in image["models"] if model["takes"]]
    if len(names) > 1 and len(names) == len(image["models"]):
        return f"all {len(names)} models"
    if len(names) > LISTED:  # below the table stands which do not take it
        return f"{len(names)} of {len(image['models'])} models"
    return ", ".join(names) or _NONE


_UNREADABLE, _NONE, _NO_UID = "unreadable", "none", "no UID"


def _series(image: Image) -> str:
    """As --series takes it: a number, with the part where one series holds several images."""
    number = image.get("series_number") or ("-" if image["kind"] == "dicom" else "")
    return f"{number}/{image['part']}" if image.get("parts", 1) > 1 else number


def _style(name: str, row: Mapping[str, str]) -> str:
    if name == "taken by":
        return {_UNREADABLE: "red", _NONE: "dim"}.get(row[name], "green")
    return {"missing": "red", "study": "bold"}.get(name, "")


def _shorten(text: str, width: int) -> str:
    """Cut out the middle, because names differ at both ends."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    tail = text
    while cell_len(tail) > (width - 1) // 2:
        tail = tail[1:]
    start = set_cell_size(text, width - 1 - cell_len(tail)).rstrip()
    return f"{start}\N{HORIZONTAL ELLIPSIS}{tail}"


def _text_of(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(plain(text), style)


# --- lists below it --------------------------------------------------------------------------


def _list(console: Console, title: str, lines: Sequence[str], verbose: bool) -> None:
    """A titled list, shortened unless all of it is wanted."""
    from rich.padding import Padding
    from rich.text import Text

    if not lines:
        return
    console.print(Text(title, "dim"))
    shown = lines if verbose or len(lines) <= FEW else lines[: FEW - 1]
    for line in shown:
        console.print(Padding(Text(plain(line)), (0, 0, 0, 2), expand=False))
    if len(shown) < len(lines):
        console.print(Text(f"  and {len(lines) - len(shown)} more; -v shows all", "dim"))


def _identifiers(images: Iterable[Image]) -> list[str]:
    """UIDs, and what the frames of 4-D images are."""
    lines, last = [], ""
    for image in images:
        if image["kind"] == "dicom":
            if image["study_uid"] != last:
                last = image["study_uid"]
                lines.append(f"{image['group']}: {last or _NO_UID}")
            lines.append(f"  series {_series(image)}: {image['series_uid'] or _NO_UID}")
        lines += [f"    frame {n}: {x}" for n, x in enumerate(image.get("frame_labels") or ())]
    return lines


def _blocked(images: Iterable[Image]) -> list[str]:
    return _by_reason((image, image["blocking"]["error"]) for image in images if image["blocking"])


def _notes(images: Iterable[Image]) -> list[str]:
    return _by_reason(
        (image, problem)
        for image in images
        if not image["blocking"]
        for problem in image["problems"]
    )


def _reasons(images: Iterable[Image]) -> list[str]:
    """Why models do not take images that can be read; models with one reason share a line."""
    found = []
    for image in images:
        names: dict[str, list[str]] = {}
        for model in image["models"]:
            if not model["takes"] and not image["blocking"]:
                why = _without_path(image, model["why"]).removeprefix(f"model '{model['name']}' ")
                names.setdefault(why, []).append(model["name"])
        found += [(image, f"{', '.join(models)}: {why}") for why, models in names.items()]
    return _by_reason(found)


def _failed(failed: Iterable[Mapping[str, Any]]) -> list[str]:
    """Files that cannot be opened."""
    return _by_reason(({**entry, "kind": "", "group": ""}, entry["error"]) for entry in failed)


def _by_reason(found: Iterable[tuple[Image, str]]) -> list[str]:
    """One line per reason with everything it holds for."""
    where: dict[str, dict[str, list[str]]] = {}
    for image, reason in found:
        reason = _without_path(image, reason)
        name = _series(image) if image["kind"] == "dicom" else Path(image["path"]).name
        where.setdefault(reason, {}).setdefault(image["group"], []).append(name)
    return [f"{reason} ({_places(groups)})" for reason, groups in where.items()]


def _without_path(image: Image, reason: str) -> str:
    """The reader names the path that was given, which stands above."""
    return reason.removeprefix(str(image["path"])).removeprefix(":").strip()


def _places(groups: Mapping[str, Sequence[str]]) -> str:
    """Such as "study 1: 2, 3; study 2: 4", or how many where that gets long."""
    text = "; ".join(
        f"{group}: {', '.join(dict.fromkeys(names))}" if group else ", ".join(dict.fromkeys(names))
        for group, names in groups.items()
    )
    if len(text) <= _LONG:
        return text
    count = sum(len(names) for names in groups.values())
    if all(group.startswith("study ") for group in groups):
        return f"{count:,} series in {_count(len(groups), 'study', 'studies')}"
    return f"{count:,} files, such as {next(iter(groups.values()))[0]}"


_LONG = 80


def _set_aside(entries: Iterable[Mapping[str, Any]], verbose: bool) -> list[str]:
    """A line per reason; with ``verbose`` per series."""
    lines: dict[str, tuple[int, dict[str, list[str]]]] = {}
    for entry in entries:
        key = entry["reason"]
        if verbose:
            words = (entry["modality"], entry["series_description"], entry["series_uid"])
            key = ", ".join([key, *(word for word in words if word)])
        objects, groups = lines.get(key, (0, {}))
        groups.setdefault(entry["group"], []).append(entry["series_number"] or "-")
        lines[key] = objects + entry["objects"], groups
    most_first = sorted(lines.items(), key=lambda item: -item[1][0])
    return [f"{objects:>4} {reason}{_beside(groups)}" for reason, (objects, groups) in most_first]


def _beside(groups: Mapping[str, Sequence[str]]) -> str:
    """The studies of the table that hold it; studies without an image have no number there."""
    shown = {group: names for group, names in groups.items() if group}
    elsewhere = "; elsewhere" if "" in groups else ""
    return f" ({_places(shown)}{elsewhere})" if shown else ""
