"""Which topics a text is about. Pure, and its cost hardly depends on how many keywords there are.

Case, accents and width do not matter. A keyword in an alphabet that puts spaces between words (Latin,
Greek, Cyrillic, Armenian, Georgian) matches whole words only; in any other script it matches anywhere,
because there a word's neighbours are written on to it: Chinese, Japanese and Thai have no spaces, Arabic,
Hindi and Korean join articles and particles. A phrase matches across any white space, and as the hashtag
made of its words. `lumio` matches "Lumio" and "#lumio"; `#lumio` matches the hashtag only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

# Letters and digits of the alphabets whose words stand apart. Ranges of Unicode 15 blocks.
_SPACED: Final = (
    "0-9A-Za-z_\u00aa\u00b5\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af"  # ASCII, Latin, IPA
    "\u0370-\u0373\u0376-\u037f\u0386\u0388-\u052f"  # Greek, Cyrillic
    "\u0531-\u0556\u0561-\u0587"  # Armenian
    "\u10a0-\u10fa\u10fc-\u10ff\u1c80-\u1cbf"  # Georgian, Cyrillic
    "\u1d00-\u1dbf\u1e00-\u1fbc\u1fc2-\u1fcc\u1fd0-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ffc"  # Latin, Greek
    "\u2c60-\u2c7f\u2d00-\u2d2f\u2de0-\u2dff\ua640-\ua66e\ua680-\ua69f\ua722-\ua788\ua78b-\ua7ff\uab30-\uab65"
)
_WORD = re.compile(f"[{_SPACED}]+")
# Marks that change no word: Latin, Greek and Cyrillic accents, Hebrew points, Arabic vowel signs. Not the
# marks of Indic scripts, Thai or kana, which are letters in all but name.
_MARKS = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
    # Invisible: soft hyphen, zero-width and direction marks, variation selectors.
    "\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]"
)
# Signs that NFKD would turn into letters of the word before them.
_SIGNS = re.compile("[\u2120\u2122\u00b2\u00b3\u00b9\u2070-\u209c]")
_SPACE = re.compile(r"\s+")


def normalise(text: str) -> str:
    """Casefolded, without accents, compatibility forms replaced (NFKD), white space single."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", _SIGNS.sub(" ", text)).casefold()
        text = unicodedata.normalize("NFC", _MARKS.sub("", unicodedata.normalize("NFKD", text)))
    else:
        text = text.lower()
    return _SPACE.sub(" ", text).strip()


class Matcher:
    """Topics and their keywords, made ready once for many texts."""

    def __init__(self, topics: Mapping[str, Sequence[str]]) -> None:
        """topics: keywords by topic name; an empty keyword matches nothing."""
        # word -> (how far the keyword begins before it, the whole keyword, topic): a text's words are
        # looked up.
        self._by_word: dict[str, list[tuple[int, re.Pattern[str] | None, str]]] = defaultdict(list)
        # Keywords without any such word are searched for, one after the other.
        self._anywhere: list[tuple[str, str]] = []
        for topic, keywords in topics.items():
            for keyword in {form for written in keywords for form in _forms(normalise(written))}:
                self._add(keyword, topic)

    def _add(self, keyword: str, topic: str) -> None:
        word = _WORD.search(keyword)
        if word is None:
            self._anywhere.append((keyword, topic))
            return
        # None: the keyword is the word, so finding the word is enough.
        pattern = None if word[0] == keyword else re.compile(_bounded(keyword))
        self._by_word[word[0]].append((word.start(), pattern, topic))

    def match(self, *texts: str) -> tuple[str, ...]:
        """Names of the topics any of `texts` is about, sorted."""
        found: set[str] = set()
        for text in texts:
            if text:
                self._match(normalise(text), found)
        return tuple(sorted(found))

    def _match(self, text: str, found: set[str]) -> None:
        for word in _WORD.finditer(text):
            for before, pattern, topic in self._by_word.get(word[0], ()):
                if topic in found:
                    continue
                start = word.start() - before
                if pattern is None or (start >= 0 and pattern.match(text, start)):
                    found.add(topic)
        for keyword, topic in self._anywhere:
            if topic not in found and keyword in text:
                found.add(topic)


def _forms(keyword: str) -> Iterable[str]:
    """The ways a keyword is written: a phrase is also one hashtag."""
    if keyword.strip("# "):
        yield keyword
        if " " in keyword and not keyword.startswith("#"):
            yield "#" + keyword.replace(" ", "")


def _bounded(keyword: str) -> str:
    """A pattern that lets no letter of a spaced alphabet touch the keyword where the keyword ends in one."""
    before = f"(?<![{_SPACED}])" if _WORD.match(keyword[0]) else ""
    after = f"(?![{_SPACED}])" if _WORD.match(keyword[-1]) else ""
    # A hashtag is one: "##" and "a#b" are not its beginning.
    if keyword[0] == "#":
        before = f"(?<![{_SPACED}#&/])"
    return before + re.escape(keyword) + after
