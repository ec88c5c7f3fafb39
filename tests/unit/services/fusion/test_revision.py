from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from services.fusion.join import mask
from services.fusion.revision import Outcome, Scored, Standing, counted, fullest, revise
from services.fusion.testing import judged
from shared.messages import Answer, Label, Modality, Post, Verdict
from shared.testing import NOON, post

LATER = NOON + timedelta(minutes=5)

LETTERS = {"T": Modality.TEXT, "I": Modality.IMAGE, "A": Modality.AUDIO, "S": Modality.SPEECH}


def scored(
    answers: str, *, model_version: str = "m@1", post_id: str = "test:1", score: float = 0.5
) -> Scored:
    """`Ti` was answered with a vector for text, and with why there is none for the image."""
    given = {
        LETTERS[letter.upper()]: Answer(np.ones(2, np.float16))
        if letter.isupper()
        else Answer(None, "broken")
        for letter in answers
    }
    verdict = Verdict(Label.POSITIVE, (0.1, 0.2, 0.7), score, (), {}, model_version)
    return judged(0, post(post_id, expected=frozenset(LETTERS.values())), given, verdict)


def formed(one: Scored, form: Post) -> Scored:
    """The same, of another form of the post."""
    return replace(one, joined=replace(one.joined, post=form))


@pytest.mark.parametrize(
    ("standing", "new", "outcome"),
    [
        (None, "T", Outcome.WRITTEN),
        ("T", "T", Outcome.SAME),
        ("T", "TI", Outcome.WRITTEN),
        ("TI", "T", Outcome.POORER),
        ("TI", "TA", Outcome.POORER),
        ("TI", "A", Outcome.POORER),
        ("TI", "TIA", Outcome.WRITTEN),
        ("T", "Ti", Outcome.WRITTEN),
        ("Ti", "T", Outcome.POORER),
        ("Ti", "TI", Outcome.WRITTEN),
        ("TI", "Ti", Outcome.POORER),
        ("Ti", "TA", Outcome.WRITTEN),
        ("Ti", "Ta", Outcome.POORER),
        ("t", "t", Outcome.SAME),
        ("t", "T", Outcome.WRITTEN),
        ("T", "T@2", Outcome.WRITTEN),
        ("TI", "T@2", Outcome.POORER),
        ("TI", "TI@2", Outcome.WRITTEN),
    ],
)
def test_a_fuller_verdict_stands(standing: str | None, new: str, outcome: Outcome) -> None:
    """`T@2` is text, judged by another version of the fusion model."""
    letters, _, version = new.partition("@")
    found = scored(letters, model_version=f"m@{version or 1}")
    old = None
    if standing is not None:
        known = scored(standing, score=-0.5)
        old = Standing(known.joined.used, known.joined.answered, known.sentiment(3, NOON))
    written = revise(old, found, LATER)
    assert written.outcome is outcome
    if outcome is Outcome.WRITTEN:
        assert written.sentiment == found.sentiment(1 if old is None else 4, LATER)
    else:
        assert old is not None
        assert written.sentiment == old.sentiment, "what stands, for it may never have been published"


def test_masks_are_bits_of_the_modalities() -> None:
    assert mask([]) == 0
    assert mask([Modality.TEXT, Modality.SPEECH]) == 0b10010
    joined = scored("Ti").joined
    assert (joined.used, joined.answered) == (0b10, 0b110)


def test_fullest_keeps_one_verdict_a_post_in_order_of_id() -> None:
    a, a_fuller, b = (
        scored("T", post_id="test:a"),
        scored("TI", post_id="test:a"),
        scored("T", post_id="test:b"),
    )
    assert fullest([b, a, a_fuller]) == [a_fuller, b]
    assert fullest([b, a_fuller, a]) == [a_fuller, b]


def test_the_latest_form_stands_in_whatever_order_they_come() -> None:
    old = scored("TI")
    edited = formed(scored("T"), replace(old.post, version=2))
    assert fullest([old, edited]) == fullest([edited, old]) == [edited]


def test_a_deletion_takes_back_what_stood_once_and_says_nothing_of_it() -> None:
    counted_for = scored("TI")
    standing = Standing(counted_for.joined.used, counted_for.joined.answered, counted_for.sentiment(3, NOON))
    tombstone = formed(
        scored("t"), post("test:1", deleted=True, text="", topics=("of the tombstone",), language="und")
    )
    written = revise(standing, tombstone, LATER)
    assert written.outcome is Outcome.WRITTEN
    told = written.sentiment
    assert (told.revision, told.post.deleted, told.post.text) == (4, True, "")
    assert (told.post.topics, told.post.language) == (counted_for.post.topics, counted_for.post.language)
    again = revise(Standing(0, 0, told), tombstone, LATER)
    assert again.outcome is Outcome.SAME
    assert again.sentiment == told


@pytest.mark.parametrize(
    ("score", "micro"), [(0.5, 500_000), (-1.0, -1_000_000), (1 / 3, 333_333), (-2 / 3, -666_667)]
)
def test_scores_are_whole_millionths(score: float, micro: int) -> None:
    assert counted(scored("T", score=score).sentiment(1, NOON)).score_micro == micro


def test_complete_and_transcript() -> None:
    assert not scored("TIA").joined.complete
    whole = scored("TIaS")
    assert whole.joined.complete
    assert whole.joined.transcript == ""
    heard = Answer(np.ones(2, np.float16), transcript="never again")
    spoken = judged(0, whole.post, {Modality.SPEECH: heard}, whole.verdict)
    assert spoken.joined.transcript == "never again"
    assert spoken.joined.answers == {Modality.SPEECH: heard}
