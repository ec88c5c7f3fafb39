"""Manifests: what is read, and what is refused with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.training.manifest import ManifestError, classes, of_labels, parse_map, read


def test_csv_with_mapped_columns_and_a_lone_file(tmp_path: Path) -> None:
    (tmp_path / "a.JPG").write_bytes(b"x")
    (tmp_path / "b.flac").write_bytes(b"x")
    path = tmp_path / "m.csv"
    path.write_text("tweet,mood,file,speaker\nhello,good,a.JPG,7\n,bad,b.flac,8\n")
    rows = read(path, parse_map("text=tweet, label=mood,group=speaker"))
    assert [(r.text, r.label, r.group) for r in rows] == [("hello", "good", "7"), ("", "bad", "8")]
    assert (rows[0].image, rows[0].audio) == (tmp_path / "a.JPG", None)
    assert (rows[1].image, rows[1].audio) == (None, tmp_path / "b.flac")
    assert rows[0].language == "und"


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"text": "grüezi", "label": "x", "lang": "de", "id": 5}) + "\n\n")
    (row,) = read(path)
    assert (row.id, row.text, row.language) == ("5", "grüezi", "de")


@pytest.mark.parametrize(
    ("name", "content", "mapping", "reason"),
    [
        ("m.csv", "text,label\na,b\n", "text=tweet", "no column 'tweet'"),
        ("m.csv", "text,image,label\na,gone.png,b\n", "", r"gone\.png"),
        ("m.csv", "text,label\n", "", "no rows"),
        ("m.jsonl", "{broken\n", "", "not a UTF-8 CSV or JSONL"),
        ("m.jsonl", "[1]\n", "", "not a JSON object"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(
    tmp_path: Path, name: str, content: str, mapping: str, reason: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=reason):
        read(tmp_path / name, parse_map(mapping))


def test_a_missing_manifest_and_a_wrong_map_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no manifest"):
        read(tmp_path / "none.csv")
    with pytest.raises(ManifestError, match="FIELD=COLUMN"):
        parse_map("colour=tweet")


def test_sentiments_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("text,label\na,positive\nb,neutral\nc,negative\nd,\n")
    assert classes(read(path)) == ("negative", "neutral", "positive")
    path.write_text("text,label\na,sad\nb,happy\n")
    assert classes(read(path)) == ("happy", "sad")


def test_emotions_by_the_names_that_data_sets_give_them(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("text,label,emotion\na,x,angry\nb,y,fear\nc,y,bored\n")
    assert [row.emotion for row in read(path)] == ["anger", "fear", ""]
    assert [row.emotion for row in read(path, {"emotion": "emotion"})] == ["anger", "fear", "bored"]
    rows = read(path, {"label": "emotion"})
    assert [(row.label, row.emotion) for row in rows] == [("angry", ""), ("fear", ""), ("bored", "")]


def test_only_rows_of_the_labels_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("text,label\na,good\nb,bad\nc,odd\nd,\n")
    rows = read(path)
    assert [row.text for row in of_labels(rows, "")] == ["a", "b", "c", "d"]
    assert [row.text for row in of_labels(rows, "bad, good")] == ["a", "b", "d"]
    with pytest.raises(ManifestError, match="no row is labelled worse"):
        of_labels(rows, "good,worse")
