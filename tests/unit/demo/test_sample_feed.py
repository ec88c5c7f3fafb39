"""The shipped sample feed is what demo/README.md says it is."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

DEMO = Path(__file__).parents[3] / "demo"
MEDIA = DEMO / "media"
KEYS = {"platform", "id", "author", "created_at", "text", "lang", "media", "url"}
LATER_FORMS = {"edited_at", "deleted"}  # the format has them, no post of the sample was changed
PLATFORMS = {"bluesky", "mastodon", "x", "reddit", "youtube"}
MEDIA_CAP_BYTES = 5_000_000

Post = dict[str, Any]


def fold(text: str) -> str:
    """Lower case without accents."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


def modalities(post: Post) -> str:
    """ "T", "TI", "TIV" and so on: text, image, voice."""
    kinds = {path.split("/")[0] for path in post.get("media", [])}
    return "T" * bool(post.get("text")) + "I" * ("images" in kinds) + "V" * ("voices" in kinds)


@pytest.fixture(scope="module")
def posts() -> list[Post]:
    return [json.loads(line) for line in (DEMO / "feed.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def topics() -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((DEMO / "topics.json").read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def intended() -> dict[str, dict[str, str]]:
    with (DEMO / "intended.csv").open(encoding="utf-8", newline="") as file:
        return {row["post_id"]: row for row in csv.DictReader(file)}


def post_id(post: Post) -> str:
    return f"{post['platform']}:{post['id']}"


def test_every_line_is_a_post_of_the_documented_format(posts: list[Post]) -> None:
    assert len(posts) >= 320
    for post in posts:
        assert set(post) <= KEYS
        assert {"platform", "id", "author", "created_at", "url"} <= set(post)
        assert post["platform"] in PLATFORMS
        assert post["id"]
        assert isinstance(post["id"], str)
        assert modalities(post), "a post says something"
        assert re.match(r"https://[a-z]+\.example/", post["url"])


def test_platform_and_id_name_one_post(posts: list[Post]) -> None:
    assert len({post_id(post) for post in posts}) == len(posts)


def test_two_days_in_order(posts: list[Post]) -> None:
    times = [
        datetime.strptime(post["created_at"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) for post in posts
    ]
    assert times == sorted(times)
    assert {time.date().isoformat() for time in times} == {"2026-06-13", "2026-06-14"}
    by_hour = Counter(time.hour for time in times)
    assert max(by_hour[hour] for hour in (1, 2, 3, 4)) < min(by_hour[hour] for hour in (8, 12, 18))


def test_the_documented_format_names_every_key() -> None:
    documented = set(
        re.findall(r"^\| `(\w+)` \| (?:yes|no) \|", (DEMO / "README.md").read_text("utf-8"), re.M)
    )
    assert documented == KEYS | LATER_FORMS


def test_media_exist_are_all_used_and_small(posts: list[Post]) -> None:
    named = {path for post in posts for path in post.get("media", [])}
    shipped = {path.relative_to(MEDIA).as_posix() for path in MEDIA.rglob("*") if path.is_file()}
    assert named == shipped
    assert sum((MEDIA / path).stat().st_size for path in shipped) < MEDIA_CAP_BYTES
    assert all((MEDIA / path).stat().st_size > 0 for path in shipped)
    assert {Path(path).suffix for path in shipped} == {".webp", ".opus"}


def test_each_combination_of_modalities_at_least_eight_times(posts: list[Post]) -> None:
    counts = Counter(modalities(post) for post in posts)
    assert set(counts) == {"T", "TI", "TV", "TIV", "I", "V", "IV"}
    assert min(counts.values()) >= 8, counts


def test_languages_and_platforms(posts: list[Post]) -> None:
    languages = Counter(post["lang"] for post in posts if "lang" in post)
    assert set(languages) == {"en", "es", "de", "fr", "it", "pt"}
    assert min(languages.values()) >= 25, languages
    platforms = Counter(post["platform"] for post in posts)
    assert set(platforms) == PLATFORMS
    assert min(platforms.values()) >= 25, platforms


def test_words_are_distinct_but_for_reposts(posts: list[Post]) -> None:
    """The same words come again only with the same media, from someone else, later."""
    first: dict[str, Post] = {}
    reposts = 0
    for post in posts:
        key = post.get("text") or "|".join(post["media"])
        if key not in first:
            first[key] = post
            continue
        reposts += 1
        assert post.get("text", "") == first[key].get("text", "")
        assert post.get("media") == first[key].get("media")
        assert post["author"] != first[key]["author"]
        assert post["created_at"] > first[key]["created_at"]
    assert reposts >= 25


def test_keywords_find_each_posts_one_topic(
    posts: list[Post], topics: list[dict[str, Any]], intended: dict[str, dict[str, str]]
) -> None:
    """Both by plain containment and by whole words, without regard to case and accents.

    Words alone are enough where there are any; a post without words is found by its url.
    """
    unmatched = 0
    for post in posts:
        where = fold(post.get("text") or post["url"])
        contained = [t["name"] for t in topics if any(fold(word) in where for word in t["keywords"])]
        whole = [
            topic["name"]
            for topic in topics
            if any(
                re.search(rf"(?<![\w#]){re.escape(fold(word))}(?!\w)", where) for word in topic["keywords"]
            )
        ]
        topic = intended[post_id(post)]["topic"]
        assert contained == whole == ([topic] if topic else []), post
        unmatched += not topic
        # Nor does the address lead a post with words to another topic.
        elsewhere = {
            t["name"] for t in topics if any(fold(word) in fold(post["url"]) for word in t["keywords"])
        }
        assert elsewhere <= {topic}
    assert unmatched == 8


def test_topics_are_named_as_promised(topics: list[dict[str, Any]]) -> None:
    assert [topic["name"] for topic in topics] == ["lumio-one", "metro-aurora", "solfest"]
    for topic in topics:
        assert set(topic) == {"name", "display_name", "keywords"}
        folded = [word.casefold() for word in topic["keywords"]]
        assert len(set(folded)) == len(folded)


def test_each_post_has_an_intended_label(posts: list[Post], intended: dict[str, dict[str, str]]) -> None:
    assert set(intended) == {post_id(post) for post in posts}
    assert {row["label"] for row in intended.values()} == {"negative", "neutral", "positive"}
    per_topic = Counter(row["topic"] for row in intended.values())
    assert all(per_topic[topic] >= 90 for topic in ("lumio-one", "metro-aurora", "solfest")), per_topic


def test_one_mood_turns_and_two_hold(posts: list[Post], intended: dict[str, dict[str, str]]) -> None:
    score = {"negative": -1, "neutral": 0, "positive": 1}
    scores: dict[tuple[str, str], list[int]] = defaultdict(list)
    for post in posts:
        row = intended[post_id(post)]
        day, hour = post["created_at"][8:10], int(post["created_at"][11:13])
        part = day
        if row["topic"] == "lumio-one" and day == "14":
            part += (
                " morning"
                if hour < 9
                else " outrage"
                if 10 <= hour < 17
                else " evening"
                if hour >= 18
                else " turn"
            )
        scores[row["topic"], part].append(score[row["label"]])
    mood = {key: sum(values) / len(values) for key, values in scores.items()}
    assert mood["lumio-one", "13"] > 0.5
    assert mood["lumio-one", "14 morning"] > 0.3
    assert mood["lumio-one", "14 outrage"] < -0.7
    assert mood["lumio-one", "14 outrage"] + 0.4 < mood["lumio-one", "14 evening"] < 0.3
    assert abs(mood["metro-aurora", "13"]) < 0.2
    assert abs(mood["metro-aurora", "14"]) < 0.2
    assert mood["solfest", "13"] > 0.5
    assert mood["solfest", "14"] > 0.5


def test_a_voice_sounds_as_its_post_is_meant(posts: list[Post], intended: dict[str, dict[str, str]]) -> None:
    """EMO-DB's sixth character is the emotion that was acted."""
    label = {"W": "negative", "T": "negative", "F": "positive", "N": "neutral"}
    voices = {
        path: intended[post_id(post)]["label"]
        for post in posts
        for path in post.get("media", [])
        if "voices/" in path
    }
    assert 25 <= len(voices) <= 40
    for path, meant in voices.items():
        assert label[Path(path).stem[5]] == meant, path


def test_broken_lines_stand_between_good_ones() -> None:
    lines = (DEMO / "broken.jsonl").read_bytes().splitlines()
    kinds: list[str] = []
    named: set[str] = set()
    for line in lines:
        try:
            post = json.loads(line)
            kinds.append(post["id"].split("-")[0] or "reject")
        except (ValueError, KeyError, TypeError):
            kinds.append("reject")
            continue
        if kinds[-1] in {"good", "absent"} or "truncated" in post["id"]:
            named |= set(post.get("media", []))
    counts = Counter(kinds)
    assert set(counts) == {"good", "unscored", "absent", "reject", "any"}
    assert counts["good"] >= 20
    assert counts["reject"] >= 10
    for before, middle, after in zip(kinds, kinds[1:], kinds[2:], strict=False):
        assert "good" in (before, middle, after), "no run of bad lines without a good one"
    shipped = {path.relative_to(DEMO / "broken_media").as_posix() for path in DEMO.glob("broken_media/*/*")}
    assert named - shipped == {"images/not_there.webp"}
    assert shipped <= named
    assert (DEMO / "broken_media/voices/silence_10_hours.flac").stat().st_size < 100_000


def test_licences_and_sources_are_listed() -> None:
    readme = (DEMO / "README.md").read_text("utf-8")
    for words in ("EMO-DB", "CC0-1.0", "Apache-2.0", "Aileron", "Burkhardt"):
        assert words in readme
    for path in (
        path for path in DEMO.rglob("*") if path.suffix in {".md", ".py", ".json", ".jsonl", ".csv"}
    ):
        assert b"/work/" not in path.read_bytes(), f"{path.name} names a machine's path"


def test_the_readme_counts_right(posts: list[Post], intended: dict[str, dict[str, str]]) -> None:
    readme = (DEMO / "README.md").read_text("utf-8")
    per_topic = Counter(row["topic"] for row in intended.values())
    assert f"`make demo` plays: {len(posts)} posts" in readme
    for topic in ("lumio-one", "metro-aurora", "solfest"):
        assert f"| `{topic}` | {per_topic[topic]} |" in readme
    contents = Counter(post.get("text") or "|".join(post["media"]) for post in posts)
    assert f"{sum(n > 1 for n in contents.values())} posts are passed on" in readme
    assert f"({sum(n - 1 for n in contents.values())} reposts)" in readme
    assert f"{sum(not post.get('text') for post in posts)} posts have no words" in readme
    images, voices = len(list(MEDIA.glob("images/*"))), len(list(MEDIA.glob("voices/*")))
    assert f"{images} pictures" in readme
    assert f"{voices} voices" in readme
