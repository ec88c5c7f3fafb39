"""Manifests: CSV or JSONL files that list labelled posts. Reads rows, knows no model."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIELDS = ("id", "text", "image", "audio", "label", "group", "lang", "emotion")
# What data sets call the emotions of the model.
_EMOTION_NAMES = {
    name: name for name in ("anger", "joy", "sadness", "fear", "surprise", "disgust", "neutral")
} | {
    "angry": "anger",
    "calm": "neutral",
    "disgusted": "disgust",
    "fearful": "fear",
    "happiness": "joy",
    "happy": "joy",
    "sad": "sadness",
    "surprised": "surprise",
}
_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"})
_SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".webm", ".aac"})


class ManifestError(ValueError):
    """A manifest that cannot be used; the message names the file, the line and the column."""


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled post. Empty text, or no path: the modality is not there. `part` names the data set it is
    from."""

    id: str
    label: str = ""
    text: str = ""
    image: Path | None = None
    audio: Path | None = None
    group: str = ""
    language: str = "und"
    emotion: str = ""
    part: str = ""


def parse_map(mapping: str) -> dict[str, str]:
    """`text=tweet,label=mood` as field -> column. Raises ManifestError for a field that does not exist."""
    columns: dict[str, str] = {}
    for pair in filter(None, (piece.strip() for piece in mapping.split(","))):
        field, equals, column = pair.partition("=")
        if not equals or field not in FIELDS:
            raise ManifestError(f"--map {pair!r}: write FIELD=COLUMN, FIELD being one of {', '.join(FIELDS)}")
        columns[field] = column
    return columns


def read(path: Path, columns: Mapping[str, str] | None = None) -> list[Row]:
    """The rows of a manifest. Paths in it are relative to it.

    columns: which column holds a field, by default the one of the same name; a column `file` with a picture
    or a sound counts as image or audio by its suffix. A column `emotion` that is not mapped counts where it
    holds a name of one of the model's, and not at all where it is the label.
    Raises ManifestError when the file is no manifest, a mapped column is missing, or a file it names is not
    there.
    """
    columns = columns or {}
    rows: list[Row] = []
    missing: list[str] = []
    for number, record in _records(path):
        for field, column in columns.items():
            if column not in record:
                raise ManifestError(f"{path}:{number}: no column {column!r}, which --map wants as {field}")
        values = {field: record.get(columns.get(field, field), "") for field in FIELDS}
        if columns.get("label") == "emotion" and "emotion" not in columns:
            values["emotion"] = ""
        lone = record.get("file", "")
        if lone and not values["image"] and not values["audio"]:
            suffix = Path(lone).suffix.lower()
            if suffix in _IMAGES:
                values["image"] = lone
            elif suffix in _SOUNDS:
                values["audio"] = lone
        paths = {name: path.parent / values[name] if values[name] else None for name in ("image", "audio")}
        missing += [f"{path}:{number}: {p}" for p in paths.values() if p is not None and not p.is_file()]
        rows.append(
            Row(
                id=values["id"] or str(number),
                label=values["label"],
                text=values["text"],
                image=paths["image"],
                audio=paths["audio"],
                group=values["group"],
                language=values["lang"] or "und",
                emotion=_EMOTION_NAMES.get(values["emotion"], values["emotion"] * ("emotion" in columns)),
            )
        )
    if missing:
        shown = "\n  ".join(missing[:5])
        raise ManifestError(f"{len(missing)} files of the manifest are not there, the first:\n  {shown}")
    if not rows:
        raise ManifestError(f"{path} has no rows")
    return rows


def of_labels(rows: Sequence[Row], labels: str) -> list[Row]:
    """The rows of the labels named, separated by commas, and those without one; all rows for "".

    Raises ManifestError when no row has one of them.
    """
    wanted = {name.strip() for name in labels.split(",") if name.strip()}
    kept = [row for row in rows if not wanted or not row.label or row.label in wanted]
    missing = sorted(wanted - {row.label for row in kept})
    if missing:
        raise ManifestError(f"--labels: no row is labelled {', '.join(missing)}")
    return kept


def classes(rows: Sequence[Row]) -> tuple[str, ...]:
    """The labels of the rows: sentiments in their order, anything else sorted."""
    found = {row.label for row in rows if row.label}
    order = ("negative", "neutral", "positive")
    return order if found == set(order) else tuple(sorted(found))


def _records(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line or row number, column -> text) of every record."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
                for number, line in enumerate(file, 1):
                    if not line.strip():
                        continue
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ManifestError(f"{path}:{number}: not a JSON object")
                    yield number, {key: "" if value is None else str(value) for key, value in record.items()}
            else:
                for number, values in enumerate(csv.DictReader(file), 2):
                    yield number, {key: value or "" for key, value in values.items() if key is not None}
    except FileNotFoundError as error:
        raise ManifestError(f"there is no manifest {path}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} is not a UTF-8 CSV or JSONL file: {error}") from error
