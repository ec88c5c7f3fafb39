"""The data of the shipped model: which rows of which sets, with what was left out and why. docs/MODELS.md
tells it.

Only sets whose licence allows weights trained on them to be given away: TweetEval, UMSAB, EMO-DB, muxspace
faces.
"""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from services.fusion.model import EMOTIONS, SENTIMENTS
from services.training import blanks
from services.training.examples import Examples, joined
from services.training.features import OpenEncoders, Progress, embed, from_rows, quiet
from services.training.fit import FitOptions, class_weights
from services.training.manifest import ManifestError, Row
from shared.encoding import Input
from shared.messages import Modality

Codes = npt.NDArray[np.uint64]

# Of each class of TweetEval's sentiment set at most this many: nearly all its negative tweets, and about as
# many others.
TWEETS_PER_CLASS = {"negative": 8_000, "neutral": 6_000, "positive": 6_000}
DEV_SPEAKERS = frozenset({"13", "14"})  # of EMO-DB; the other six train
_DEV_PERSONS_PERCENT = 15  # of the faces, by the name of the person
_BLANK_PICTURES, _BLANK_SOUNDS = 240, 60
_PAIRS = 16_000

# How often each part is drawn, as a share of an epoch. Text comes first: it is what nearly every post has.
SHARES = {
    "tweeteval": 0.34,
    "umsab": 0.24,
    "tweeteval_emotion": 0.10,
    "speech": 0.08,
    "faces": 0.06,
    "emodb": 0.04,
    "blank": 0.04,
    "pairs": 0.10,
}

_FACE_EMOTIONS = {"happiness": "joy", "contempt": "disgust"}
_VOICE_EMOTIONS = {"angry": "anger", "happy": "joy", "sad": "sadness", "neutral": "neutral"}
_TWEET_EMOTIONS = {"optimism": "joy"}
# No allowed set says fear, surprise or disgust of a text, so tweets that say it in so many words stand in:
# weak labels, found by words and emoji in the languages of the tweets.
_TOLD = {
    "fear": r"scared|afraid|terrif|frighten|panic|nervous|asustad|miedo|medo|paura|peur|angst|ängst"
    r"|خوف|خائف|डर|😱|😨|😰",
    "surprise": r"\bwow\b|\bomg\b|surpris|unexpected|shock(?:ed|ing)|sorpres|sorprend|surpres|étonn|überrasch"
    r"|مفاج|हैरान|😮|😲|😯",
    "disgust": r"disgust|\bgross\b|nasty|\beww+\b|yuck|\basco\b|repugn|schifo|dégoût|\bekel|nojo"
    r"|मतली|घिन|قرف|🤢|🤮",
}


def text_rows(data: Path) -> tuple[list[Row], list[Row]]:
    """Labelled tweets to train on and to decide by. No text of any dev file is among the former.

    Emotions found by words are no measure of anything, so dev has only those that people gave.
    """
    dev = [
        replace(row, emotion="")
        for row in (
            *_tweets(data, "tweeteval/sentiment/val.csv", "tweeteval"),
            *_tweets(data, "umsab_multilingual/val.csv", "umsab"),
        )
    ]
    dev += _tweets(data, "tweeteval/emotion/val.csv", "tweeteval_emotion")
    held_out = {normalised(row.text) for row in dev}
    pool = [
        row
        for row in _tweets(data, "tweeteval/sentiment/train.csv", "tweeteval")
        if normalised(row.text) not in held_out
    ]
    random.Random(0).shuffle(pool)
    train: list[Row] = []
    seen = held_out | {""}
    drawn = dict.fromkeys(SENTIMENTS, 0)
    for row in [
        *_tweets(data, "umsab_multilingual/train.csv", "umsab"),
        *_tweets(data, "tweeteval/emotion/train.csv", "tweeteval_emotion"),
        *pool,
    ]:
        text = normalised(row.text)
        if text in seen:
            continue
        if row.part == "tweeteval":
            drawn[row.label] += 1
            if drawn[row.label] > TWEETS_PER_CLASS[row.label]:
                continue
        seen.add(text)
        train.append(row)
    return train, dev


def media_rows(data: Path) -> tuple[list[Row], list[Row]]:
    """Faces and voices to train on and to decide by: no person's face and no speaker's voice is on both
    sides."""
    train: list[Row] = []
    dev: list[Row] = []
    for number, values in enumerate(_records(data / "faces_muxspace/metadata.csv")):
        person = re.sub(r"_\d+\.\w+$", "", values["source_file"])
        sentiment = values["sentiment"] if values["sentiment"] in SENTIMENTS else ""
        emotion = _FACE_EMOTIONS.get(values["emotion"], values["emotion"])
        row = Row(
            id=f"faces-{number}",
            label=sentiment,
            image=data / "faces_muxspace" / values["file"],
            group=person,
            emotion=emotion,
            part="faces",
        )
        percent = int.from_bytes(hashlib.sha256(person.encode()).digest()[:4], "big") % 100
        (dev if percent < _DEV_PERSONS_PERCENT else train).append(row)
    for values in _records(data / "emodb_4class/metadata.csv"):
        row = Row(
            id=f"emodb-{values['file']}",
            label=values["sentiment"],
            audio=data / "emodb_4class" / values["file"],
            group=values["speaker"],
            emotion=_VOICE_EMOTIONS[values["emotion"]],
            part="emodb",
        )
        (dev if row.group in DEV_SPEAKERS else train).append(row)
    return train, dev


def shipped(
    data: Path,
    open_encoder: OpenEncoders,
    cache_dir: Path,
    progress: Progress = quiet,
    *,
    unseen: Callable[[Examples, list[str]], Examples] = lambda examples, texts: examples,
) -> tuple[Examples, npt.NDArray[np.float64], Examples]:
    """Examples to train on, how often each is drawn, and examples to decide and calibrate by.

    unseen: makes of the training texts' examples what they would be had the text model not seen them.
    """
    sides = []
    for side, (texts, media) in enumerate(zip(text_rows(data), media_rows(data), strict=True)):
        words = from_rows(texts, SENTIMENTS, open_encoder, cache_dir, progress)
        if side == 0:
            words = unseen(words, [row.text for row in texts])
        others = [row for row in media if row.part == "faces"], [row for row in media if row.part == "emodb"]
        faces, voices = (from_rows(rows, SENTIMENTS, open_encoder, cache_dir, progress) for rows in others)
        # The ten sentences that EMO-DB's actors speak say nothing: their mood is in the voice alone.
        voices = voices.aligned({"audio": voices.vectors["audio"].shape[1]})
        blank = _blank(open_encoder, cache_dir, progress, seed=side)
        if side == 1:  # that nothing has no emotion is easily right: it would flatter
            blank = replace(blank, emotions=np.full(len(blank), -1))
        every = joined([words, _as_speech(words), faces, voices, blank])
        sides.append(joined([every, _pairs(every, _PAIRS if side == 0 else 2_000, seed=side)]))
    train, dev = sides
    return train, drawing_weights(train), dev


def options(seed: int) -> FitOptions:
    """How the shipped network is fitted: the tweets decide."""
    return FitOptions(
        epochs=12,
        patience=4,
        epoch_rows=30_000,
        measure="macro_recall",
        deciding_parts=("tweeteval", "umsab"),
        seed=seed,
    )


def drawing_weights(train: Examples) -> npt.NDArray[np.float64]:
    """(N,) such that parts are drawn by their shares, and within a part every class equally often."""
    weights = np.zeros(len(train))
    for part, share in SHARES.items():
        rows = np.flatnonzero(train.parts == part)
        if len(rows):
            within = class_weights(train.labels[rows])
            weights[rows] = share * within / within.sum()
    return weights


def normalised(text: str) -> str:
    """A text without case, punctuation, links and names: two tweets equal in this are the same tweet."""
    return re.sub(r"[\W_]+", " ", re.sub(r"https?\S*|@\w+", " ", text.casefold())).strip()


def text_codes(texts: Sequence[str]) -> Codes:
    """Sorted 64-bit hashes of the normalised texts: enough to prove what was not trained on, not to read it
    back."""
    digests = {hashlib.sha256(normalised(text).encode()).digest()[:8] for text in texts}
    return np.sort(np.frombuffer(b"".join(digests), "<u8"))


def _tweets(data: Path, name: str, part: str) -> list[Row]:
    emotion = part == "tweeteval_emotion"
    rows = []
    for values in _records(data / name):
        label = values["label"]
        text = values["text"]
        told = [feeling for feeling, words in _TOLD.items() if re.search(words, text.casefold())]
        weak = told[0] if len(told) == 1 else ("neutral" if label == "neutral" and not told else "")
        rows.append(
            Row(
                id=values["id"],
                label="" if emotion else label,
                text=text,
                language=values.get("lang", "english"),
                emotion=_TWEET_EMOTIONS.get(label, label) if emotion else weak,
                part=part,
            )
        )
    return rows


def _as_speech(words: Examples) -> Examples:
    """The same words as a transcript: the speech slot is embedded by the same text model."""
    return replace(words, vectors={"speech": words.vectors["text"]}, parts=np.full(len(words), "speech"))


def _blank(open_encoder: OpenEncoders, cache_dir: Path, progress: Progress, seed: int) -> Examples:
    """Pictures and sounds that say nothing: each once per sentiment, so that the answer is no answer."""
    pictures = [Input(media=(content,)) for content in blanks.pictures(_BLANK_PICTURES, seed)]
    sounds = [Input(media=(content,)) for content in blanks.sounds(_BLANK_SOUNDS, seed)]
    parts = []
    for modality, inputs in ((Modality.IMAGE, pictures), (Modality.AUDIO, sounds)):
        matrix, index = embed(open_encoder(modality), inputs, cache_dir, progress)[modality]
        index = index[index >= 0]
        count = 3 * len(index)
        parts.append(
            Examples(
                vectors={modality.name.lower(): matrix},
                index=np.tile(index, 3)[:, None],
                labels=np.repeat(np.arange(3), len(index)),
                emotions=np.full(count, EMOTIONS.index("neutral")),
                ids=np.array([f"blank-{modality.name.lower()}-{i}" for i in range(count)], str),
                languages=np.full(count, "und"),
                groups=np.full(count, ""),
                parts=np.full(count, "blank"),
            )
        )
    return joined(parts)


def _pairs(every: Examples, count: int, seed: int) -> Examples:
    """Rows made of several: words, a face or a blank, a voice or a blank, of one sentiment.

    They teach the network what several answers at once look like, under the plain assumption that modalities
    are independent given the sentiment. They are no evidence of how well it fuses real posts, and are never
    measured as such.
    """
    rng = np.random.default_rng(seed)
    column = {slot: i for i, slot in enumerate(every.slots)}
    sources = {
        "text": np.isin(every.parts, ("tweeteval", "umsab")),
        "speech": every.parts == "speech",
        "image": every.parts == "faces",
        "audio": every.parts == "emodb",
    }
    blank = {
        slot: np.unique(every.index[every.parts == "blank", column[slot]])[1:] for slot in ("image", "audio")
    }
    labels = rng.integers(0, 3, count)
    index = np.full((count, len(column)), -1, np.int64)
    for sentiment in range(3):
        rows = np.flatnonzero(labels == sentiment)
        for slot, (given, silent) in {
            "text": (0.85, 0.0),
            "image": (0.5, 0.5),
            "audio": (0.4, 0.3),
            "speech": (0.4, 0.0),
        }.items():
            pool = every.index[sources[slot] & (every.labels == sentiment), column[slot]]
            index[rows, column[slot]] = pool[rng.integers(0, len(pool), len(rows))]
            mute = rng.random(len(rows)) < silent
            if silent:
                index[rows[mute], column[slot]] = blank[slot][rng.integers(0, len(blank[slot]), mute.sum())]
            index[rows[rng.random(len(rows)) >= given], column[slot]] = -1
    lone = (index >= 0).sum(1) < 2
    kept = np.flatnonzero(~lone)
    return Examples(
        vectors=every.vectors,
        index=index[kept],
        labels=labels[kept],
        emotions=np.full(len(kept), -1, np.int64),
        ids=np.array([f"pair-{i}" for i in kept], str),
        languages=np.full(len(kept), "und"),
        groups=np.full(len(kept), ""),
        parts=np.full(len(kept), "pairs"),
    )


def _records(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise ManifestError(f"the recipe needs {path}; --data names the folder of the data sets") from error
