"""Rows as the lines that COPY reads: read back as Postgres reads it, they say what the verdicts say."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.fusion.join import Joined
from services.fusion.revision import Scored, Written, counted, counted_new, revise
from services.fusion.rows import POST_COLUMNS, posts_lines
from services.fusion.testing import judged, verdicts_of
from shared.db import copy_texts
from shared.messages import Answer, Label, Modality, ModalityWeight, Post, Verdict
from shared.testing import NOON
from shared.testing import post as base_post

ESCAPES = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
TEXTS = st.text(st.sampled_from('\\\t\n\r\0nt"{,é😀'), max_size=8)


def read(line: str) -> list[str]:
    """The values of one line, unescaped. Source: PostgreSQL's manual, COPY, "Text Format"."""
    assert "\n" not in line
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
    lines = posts_lines(items)
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


CHANCES = st.floats(0, 1)
ANSWERS = st.dictionaries(
    st.sampled_from([Modality.IMAGE, Modality.AUDIO, Modality.SPEECH]), st.sampled_from(["", "broken", None])
)


@given(
    st.lists(
        st.lists(st.tuples(ANSWERS, CHANCES, CHANCES, st.booleans()), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    st.randoms(use_true_random=False),
)
def test_whatever_turn_and_order_they_come_from_rows_say_what_each_verdict_says(
    turns: list[list[tuple[dict[Modality, str | None], float, float, bool]]], random: Random
) -> None:
    """Columns of several turns, written in any order, against the verdicts read one by one. A modality was
    answered with a vector (""), with a reason, or not at all (None)."""
    items = []
    for turn, posts in enumerate(turns):
        joined, verdicts = [], []
        for number, (answered, first, second, silent) in enumerate(posts):
            some = {Modality.TEXT: "empty" if silent else "", **answered}
            one = Joined.of(0, base_post(f"test:{turn}-{number}", expected=frozenset(some)))
            for modality, reason in some.items():
                if reason is not None:
                    one.take(modality, None if reason else np.ones(2, np.float16), reason, "")
            joined.append(one)
            weights = tuple(
                ModalityWeight(modality, first - modality / 7) for modality in sorted(one.vectors)
            )
            negative, positive = first / 2, second / 2
            scored = (negative, 1 - negative - positive, positive), positive - negative, weights
            verdicts.append(
                Verdict(Label.NEUTRAL, *scored, {"joy": first, "100%": second}, "m@1")
                if weights
                else Verdict(Label.UNSCORED, (0.0, 0.0, 0.0), 0.0, (), {}, "m@1")
            )
        columns = verdicts_of(verdicts, "m@1")
        assert list(columns) == verdicts
        items += [revise(None, Scored(one, columns, row), NOON) for row, one in enumerate(joined)]
    random.shuffle(items)
    lines = posts_lines(items)
    for item, line in zip(items, lines, strict=True):
        row = dict(zip(POST_COLUMNS, read(line), strict=True))
        post, verdict = item.sentiment.post, item.sentiment.verdict
        assert row["post_id"] == post.post_id
        assert row["label"] == str(int(verdict.label))
        assert (
            tuple(float(row[name]) for name in ("negative", "neutral", "positive")) == verdict.probabilities
        )
        assert row["score_micro"] == str(counted(item.sentiment).score_micro)
        assert json.loads(row["emotions"]) == verdict.emotions
        assert json.loads(row["modalities"]) == {
            weight.modality.name: {
                "contribution": weight.contribution,
                "absent_reason": weight.absent_reason,
            }
            for weight in verdict.modalities
        }
        assert verdict.modalities == tuple(sorted(verdict.modalities, key=lambda weight: weight.modality))
        assert {weight.modality for weight in verdict.modalities} == post.expected
    assert list(counted_new(items)) == [counted(item.sentiment) for item in items]
