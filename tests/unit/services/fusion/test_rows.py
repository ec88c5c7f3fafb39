"""Rows as the text that COPY reads: read back as Postgres reads it, they say what the verdicts say."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.fusion.revision import Written, revise
from services.fusion.rows import POST_COLUMNS, posts_text
from services.fusion.testing import judged
from shared.db import copy_texts
from shared.messages import Answer, Label, Modality, ModalityWeight, Post, Verdict

ESCAPES = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
TEXTS = st.text(st.sampled_from('\\\t\n\r\0nt"{,é😀'), max_size=8)


def read(line: str) -> list[str]:
    """The values of one line, unescaped. Source: PostgreSQL's manual, COPY, "Text Format"."""
    return [re.sub(r"\\.", lambda found: ESCAPES[found[0]], value) for value in line.split("\t")]


def written(number: int, text: str, weights: tuple[ModalityWeight, ...]) -> Written:
    time = datetime(2026, 6, 13, tzinfo=UTC) + timedelta(seconds=number)
    post = Post(f"x:{number}", "x", time, time, text=text, expected=frozenset(w.modality for w in weights))
    vector = np.ones(2, np.float16)
    answers = {w.modality: Answer(None if w.absent_reason else vector, w.absent_reason) for w in weights}
    verdict = Verdict(Label.POSITIVE, (0.1, 0.2, 0.7), 0.6, weights, {"joy": 0.25, "fear": 1e-9}, "m@1")
    return revise(None, judged(0, post, answers, verdict), time)


@given(st.lists(TEXTS, max_size=4))
def test_texts_come_back_as_they_were_but_for_nul(texts: list[str]) -> None:
    escaped = copy_texts(texts)
    assert not any(character in value for value in escaped for character in "\t\n\r\0")
    assert [read(value)[0] for value in escaped] == [text.replace("\0", "\ufffd") for text in texts]


@given(st.lists(st.tuples(TEXTS, st.dictionaries(st.sampled_from(Modality), TEXTS)), min_size=1, max_size=4))
def test_each_post_has_a_line_with_its_own_weights(posts: list[tuple[str, dict[Modality, str]]]) -> None:
    items = []
    for number, (text, reasons) in enumerate(posts):
        shown = [
            ModalityWeight(one, 0.0 if reason else number + one / 10, reason)
            for one, reason in reasons.items()
        ]
        items.append(written(number, text, tuple(shown)))
    lines = posts_text(items).removesuffix("\n").split("\n")
    for item, line in zip(items, lines, strict=True):
        row = dict(zip(POST_COLUMNS, read(line), strict=True))
        weights = item.scored.verdict.modalities
        assert row["post_id"] == item.scored.post.post_id
        assert row["text"] == item.scored.post.text.replace("\0", "\ufffd")
        assert row["label"] == "3"
        assert row["expected"] == str(sum(1 << weight.modality for weight in weights))
        assert row["answered"] == row["expected"]
        assert row["used"] == str(sum(1 << weight.modality for weight in weights if not weight.absent_reason))
        assert json.loads(row["emotions"]) == {"joy": 0.25, "fear": 1e-9}
        assert json.loads(row["modalities"]) == {
            weight.modality.name: {
                "contribution": weight.contribution,
                "absent_reason": weight.absent_reason.replace("\0", "\ufffd"),
            }
            for weight in weights
        }
