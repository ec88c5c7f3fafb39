"""Which texts are about which topics: the table, and that hundreds of keywords cost no more than a few."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.draft import Draft
from services.ingest.jsonl import parse
from services.ingest.matching import Matcher, normalise

DEMO = Path(__file__).parents[4] / "demo"


@pytest.mark.parametrize(
    ("keyword", "text", "matches"),
    [
        ("lumio", "My Lumio broke", True),
        ("LUMIO", "my lumio", True),
        ("lumio", "lumio", True),
        ("lumio", "Luminous", False),
        ("lumio", "alumio", False),
        ("lumio", "lumios", False),
        ("lumio", "lumio2", False),
        ("lumio", "lumio_fan", False),
        ("lumio", "(lumio)!", True),
        ("lumio", "lumio's", True),
        ("lumio", "the lumio-phone", True),
        ("lumio", "Lumio™ is here", True),
        ("lumio", "Lumio®", True),
        ("lumio", "see https://lumio.example/x", True),
        ("lumio", "#Lumio", True),
        ("lumio", "#lumiogate", False),
        ("lumio", "@lumio", True),
        ("#lumio", "#LUMIO rocks", True),
        ("#lumio", "＃lumio", True),
        ("#lumio", "lumio", False),
        ("#lumio", "#lumiogate", False),
        ("#lumio", "see page#lumio", False),
        ("lumio one", "The Lumio   One\nis here", True),
        ("lumio one", "lumio ones", False),
        ("lumio one", "#LumioOne", True),
        ("lumio one", "lumioone", False),
        ("café", "CAFE", True),
        ("cafe", "un cafe\u0301", True),
        ("metro", "Métro Aurora", True),
        ("straße", "STRASSE", True),
        ("istanbul", "İSTANBUL", True),
        ("lumio", "𝐋𝐮𝐦𝐢𝐨", True),
        ("lumio", "Ｌｕｍｉｏ", True),
        ("lumio", "lu\u00admio", True),
        ("lumio", "lumio\u200b", True),
        ("at&t", "AT&T again", True),
        ("c++", "I love C++!", True),
        ("c++", "abc++", False),
        ("$tsla", "buy $TSLA", True),
        ("❤️", "so ❤ much", True),
        ("москва", "Москва, метро", True),
        ("москва", "москвач", False),
        ("αθήνα", "ΑΘΗΝΑ", True),
        ("երևան", "Երևան", True),
        # No word boundaries to be had: anywhere.
        ("地铁", "今天的地铁很挤", True),
        ("地铁", "地下铁", False),
        ("lumio", "新しいlumioが最高", True),
        ("ルミオ", "新しいルミオが最高", True),
        ("カキ", "カギ", False),
        ("은행", "새로운 은행에서", True),
        ("가", "각", False),
        ("مترو", "ركبت المترو اليوم", True),
        ("مَترو", "مترو", True),
        ("मेट्रो", "नई मेट्रो में", True),
        ("मेट्रो", "मटर", False),
        ("รถไฟ", "ฉันชอบรถไฟมาก", True),
        ("lumio手机", "买了lumio手机", True),
        ("lumio手机", "alumio手机", False),
    ],
)
def test_what_matches(keyword: str, text: str, matches: bool) -> None:
    assert Matcher({"topic": [keyword]}).match(text) == (("topic",) if matches else ())


def test_a_post_may_match_no_topic_or_many_and_names_come_sorted() -> None:
    matcher = Matcher({"b": ["sun", "moon"], "a": ["sun"], "c": ["star"], "none": ["", " ", "#", "\u200b"]})
    assert matcher.match("the sun and the moon") == ("a", "b")
    assert matcher.match("", "a star") == ("c",)
    assert matcher.match("# ") == matcher.match("") == ()


@given(st.text(max_size=40))
def test_a_normalised_text_stays_as_it_is(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@given(
    st.text(max_size=30),
    st.text(max_size=30),
    st.sampled_from(["lumio", "地铁", "#tag", "two words", "मेट्रो"]),
)
def test_a_keyword_between_spaces_is_found_whatever_surrounds_it(
    before: str, after: str, keyword: str
) -> None:
    assert Matcher({"topic": [keyword]}).match(f"{before} {keyword} {after}") == ("topic",)


@given(st.text(max_size=60), st.lists(st.text(max_size=8), max_size=8))
def test_topics_together_are_the_topics_one_by_one(text: str, keywords: list[str]) -> None:
    topics = {str(number): [keyword] for number, keyword in enumerate(keywords)}
    together = Matcher(topics).match(text)
    assert together == tuple(sorted(n for n, words in topics.items() if Matcher({n: words}).match(text)))


def test_keywords_are_looked_up_not_tried_one_by_one() -> None:
    """1,000 times the keywords may not cost even 20 times the time; trying each one would cost hundreds."""
    text = "a perfectly ordinary post about nothing that anybody tracks, with a few more words to read " * 2

    def seconds(count: int) -> float:
        matcher = Matcher({str(n): [f"keyword{n}", f"some phrase {n}", f"#tag{n}"] for n in range(count)})
        best = 9.0
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(20):
                matcher.match(text)
            best = min(best, time.perf_counter() - began)
        return best

    assert seconds(1000) < 20 * seconds(1)


def test_the_sample_feed_matches_what_it_was_written_for() -> None:
    topics = {each["name"]: each["keywords"] for each in json.loads((DEMO / "topics.json").read_text())}
    matcher = Matcher(topics)
    found: Counter[str] = Counter()
    for line in (DEMO / "feed.jsonl").read_bytes().splitlines():
        draft = parse(line)
        assert isinstance(draft, Draft)
        found.update(matcher.match(draft.text, draft.about) or ("none",))
    # demo/README.md says how many posts each has.
    assert found == {"lumio-one": 171, "metro-aurora": 102, "solfest": 99, "none": 8}
