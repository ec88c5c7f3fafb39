"""How well a model holds under what happens to posts: the same rows altered, and small sets written here.

Altered rows are compared with themselves as they were. The sets are our own, with one author's view of what
each line means: they show where a model breaks, they are no benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from services.training import augment, features, metrics
from services.training.augment import Rng
from services.training.evaluation import Judge
from services.training.examples import Examples, Halves
from services.training.manifest import Row
from shared.encoding import Input
from shared.messages import Modality


@dataclass(frozen=True, slots=True)
class Alteration:
    """Something that happens to posts. change: what it does to an input of the modality."""

    name: str
    modality: Modality
    change: Callable[[Input, Rng], Input]


def _text(name: str, change: Callable[[str, Rng], str]) -> Alteration:
    return Alteration(name, Modality.TEXT, lambda item, rng: replace(item, text=change(item.text, rng)))


def _picture(name: str, change: Callable[[augment.Pixels], augment.Pixels]) -> Alteration:
    def altered(item: Input, rng: Rng) -> Input:
        return replace(item, media=tuple(augment.changed_picture(each, change) for each in item.media))

    return Alteration(name, Modality.IMAGE, altered)


def _sound(name: str, change: Callable[[torch.Tensor, Rng], torch.Tensor | bytes]) -> Alteration:
    def altered(item: Input, rng: Rng) -> Input:
        media = (augment.changed_sound(each, lambda wave: change(wave, rng)) for each in item.media)
        return replace(item, media=tuple(media))

    return Alteration(name, Modality.AUDIO, altered)


ALTERATIONS: Final = (
    _text("typos 5 %", lambda text, rng: augment.typos(text, 0.05, rng)),
    _text("typos 10 %", lambda text, rng: augment.typos(text, 0.10, rng)),
    _text("lower case", lambda text, rng: text.lower()),
    _text("upper case", lambda text, rng: text.upper()),
    _text("words dropped 10 %", lambda text, rng: augment.dropped_words(text, 0.10, rng)),
    _text("emoji removed", lambda text, rng: augment.without_emoji(text)),
    _text("neutral emoji added", augment.with_neutral_emoji),
    _picture("blur", lambda pixels: augment.blurred(pixels, 3.0)),
    _picture("rotation 15 degrees", lambda pixels: augment.rotated(pixels, 15.0)),
    _picture("rotation 90 degrees", lambda pixels: augment.rotated(pixels, 90.0)),
    _picture("JPEG quality 10", lambda pixels: augment.compressed(pixels, 10)),
    _sound("noise at 20 dB SNR", lambda wave, rng: augment.with_noise(wave, 20.0, rng)),
    _sound("noise at 10 dB SNR", lambda wave, rng: augment.with_noise(wave, 10.0, rng)),
    _sound("noise at 0 dB SNR", lambda wave, rng: augment.with_noise(wave, 0.0, rng)),
    _sound("reverberation 0.6 s", lambda wave, rng: augment.in_a_room(wave, 0.6, rng)),
    _sound("Opus 6 kbit/s", lambda wave, rng: augment.encoded(wave, "libopus", 6_000)),
    _sound("MP3 16 kbit/s", lambda wave, rng: augment.encoded(wave, "libmp3lame", 16_000)),
)


def measure(
    judge: Judge,
    rows: Sequence[Row],
    open_encoder: features.OpenEncoders,
    cache: Path,
    *,
    max_rows: int,
    seed: int = 0,
    progress: features.Progress = features.quiet,
) -> dict[str, Any]:
    """Everything `crowdtone evaluate --robustness` adds, ready for JSON.

    max_rows: of each modality so many are altered; each is encoded again for each alteration.
    alterations: by name, over the rows that the alteration changes at all, judged with everything they have:
    accuracy and macro F1 as they were and altered, and the share judged otherwise than before.
    negation, sarcasm: see there; only for a model of texts that tells negative from positive.
    """
    rng = np.random.default_rng(seed)
    labelled = [row for row in rows if row.label]
    found: dict[str, Any] = {}
    for modality in (Modality.TEXT, Modality.IMAGE, Modality.AUDIO):
        slot = modality.name.lower()
        chosen = [row for row in labelled if features.input_of(row, modality) is not None]
        if slot not in judge.slots or not chosen:
            continue
        if len(chosen) > max_rows:
            chosen = [chosen[i] for i in np.sort(rng.permutation(len(chosen))[:max_rows])]
        found |= _altered(judge, chosen, modality, open_encoder, cache, seed, progress)
    result: dict[str, Any] = {"max_rows": max_rows, "seed": seed, "alterations": found}
    if "text" in judge.slots and {"negative", "positive"} <= set(judge.classes):

        def probabilities(texts: Sequence[str], languages: Sequence[str]) -> npt.NDArray[np.float64]:
            asked = [
                Row(str(i), text=text, language=language)
                for i, (text, language) in enumerate(zip(texts, languages, strict=True))
            ]
            examples = features.from_rows(asked, judge.classes, open_encoder, cache, progress)
            return judge.probabilities(examples.aligned(judge.slots))

        result["negation"] = negation(judge.classes, probabilities)
        result["sarcasm"] = sarcasm(judge.classes, probabilities)
    return result


def _altered(
    judge: Judge,
    rows: Sequence[Row],
    modality: Modality,
    open_encoder: features.OpenEncoders,
    cache: Path,
    seed: int,
    progress: features.Progress,
) -> dict[str, Any]:
    clean = features.from_rows(rows, judge.classes, open_encoder, cache, progress)
    before = judge.probabilities(clean.aligned(judge.slots)).argmax(1)
    inputs = [item for row in rows if (item := features.input_of(row, modality)) is not None]
    asked: list[Input] = []
    places: dict[str, npt.NDArray[np.intp]] = {}
    for number, alteration in enumerate(ALTERATIONS):
        if alteration.modality is not modality:
            continue
        altered = [alteration.change(item, augment.rng_of(item, seed, number)) for item in inputs]
        places[alteration.name] = np.array(
            [
                i
                for i, (old, new) in enumerate(zip(inputs, altered, strict=True))
                if new != old and (new.media or new.text.strip())
            ],
            np.intp,
        )
        asked += [altered[i] for i in places[alteration.name]]
    # One question for all of them: one reading of the cache, and the fullest batches.
    answers = features.embed(open_encoder(modality), asked, cache, progress)
    found: dict[str, Any] = {}
    start = 0
    for name, chosen in places.items():
        end = start + len(chosen)
        if not len(chosen):
            continue
        part = clean.take(chosen)
        for slot, (matrix, index) in answers.items():
            part = _with(part, slot.name.lower(), matrix, index[start:end])
        start = end
        after = judge.probabilities(part.aligned(judge.slots)).argmax(1)
        found[name] = {"modality": modality.name.lower()} | compared(
            part.labels, before[chosen], after, len(judge.classes)
        )
    return found


def _with(examples: Examples, slot: str, matrix: Halves, index: npt.NDArray[np.int64]) -> Examples:
    """The rows with other vectors in a slot."""
    columns = examples.index.copy()
    columns[:, examples.slots.index(slot)] = index
    return replace(examples, vectors={**examples.vectors, slot: matrix}, index=columns)


def compared(labels: metrics.Ints, before: metrics.Ints, after: metrics.Ints, classes: int) -> dict[str, Any]:
    """Measures of the same rows (N,) before and after something happened to them, ready for JSON."""
    clean, altered = (
        metrics.summary(metrics.confusion(labels, predicted, classes)) for predicted in (before, after)
    )
    found: dict[str, Any] = {"rows": len(labels), "otherwise": float((before != after).mean())}
    for name in ("accuracy", "macro_f1"):
        found[f"clean_{name}"] = clean[name]
        found[name] = altered[name]
        found[f"{name}_drop"] = clean[name] - altered[name]
    return found


Probabilities = Callable[[Sequence[str], Sequence[str]], npt.NDArray[np.float64]]
"""(texts, their languages) to (N, classes)."""


@dataclass(frozen=True, slots=True)
class Negated:
    """A language's sentences: every subject with every adjective, `plain` and `negated`."""

    plain: str
    negated: str
    subjects: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]

    def pairs(self) -> list[tuple[str, str, bool]]:
        """(plain, negated, whether the plain one is good)."""
        return [
            (self.plain.format(subject, word), self.negated.format(subject, word), is_good)
            for subject in self.subjects
            for words, is_good in ((self.good, True), (self.bad, False))
            for word in words
        ]


NEGATIONS: Final[Mapping[str, Negated]] = {
    "en": Negated(
        "{} is {}",
        "{} is not {}",
        ("The new phone", "This album", "Their service"),
        ("good", "great", "worth the money"),
        ("bad", "terrible", "disappointing"),
    ),
    "de": Negated(
        "{} ist {}",
        "{} ist nicht {}",
        ("Das neue Handy", "Dieses Album", "Der Service"),
        ("gut", "toll", "empfehlenswert"),
        ("schlecht", "schrecklich", "enttäuschend"),
    ),
    "fr": Negated(
        "{} est {}",
        "{} n'est pas {}",
        ("Ce téléphone", "Cet album", "Leur service"),
        ("bon", "génial", "agréable"),
        ("mauvais", "horrible", "décevant"),
    ),
    "es": Negated(
        "{} es {}",
        "{} no es {}",
        ("El teléfono nuevo", "Este disco", "Su servicio"),
        ("bueno", "genial", "excelente"),
        ("malo", "horrible", "decepcionante"),
    ),
    "it": Negated(
        "{} è {}",
        "{} non è {}",
        ("Il nuovo telefono", "Questo album", "Il loro servizio"),
        ("buono", "fantastico", "eccellente"),
        ("brutto", "orribile", "deludente"),
    ),
    "pt": Negated(
        "{} é {}",
        "{} não é {}",
        ("O telefone novo", "Este álbum", "O serviço deles"),
        ("bom", "ótimo", "excelente"),
        ("ruim", "horrível", "decepcionante"),
    ),
    "ar": Negated(
        "{} {}",
        "{} ليس {}",
        ("الهاتف الجديد", "هذا الألبوم"),
        ("جيد", "رائع", "ممتاز"),
        ("سيئ", "فظيع", "مخيب للآمال"),
    ),
    "hi": Negated(
        "{} {} है",
        "{} {} नहीं है",
        ("यह नया फ़ोन", "यह एल्बम"),
        ("अच्छा", "शानदार", "बढ़िया"),
        ("खराब", "बेकार", "निराशाजनक"),
    ),
    "zh": Negated(
        "{}很{}",
        "{}不{}",
        ("这部手机", "这张专辑", "他们的服务"),
        ("好", "棒", "值得推荐"),
        ("差", "糟糕", "令人失望"),
    ),
}


def negation(classes: Sequence[str], probabilities: Probabilities) -> dict[str, Any]:
    """Minimal pairs: a sentence and the same with a "not" in it, in several languages.

    expected_flip_rate: of the pairs whose plain sentence is judged as meant, those whose negated one is
    judged as it then must be: "not good" negative, "not bad" anything but negative. moved: of all pairs,
    those whose score (positive less negative) goes the right way at all.
    """
    pairs = [(language, *pair) for language, each in NEGATIONS.items() for pair in each.pairs()]
    languages = np.array([language for language, *_ in pairs], str)
    good = np.array([is_good for *_, is_good in pairs])
    asked = [plain for _, plain, _, _ in pairs] + [negated for _, _, negated, _ in pairs]
    p = probabilities(asked, [*languages.tolist(), *languages.tolist()])
    low, high = classes.index("negative"), classes.index("positive")
    plain, negated = p[: len(pairs)], p[len(pairs) :]
    right = plain.argmax(1) == np.where(good, high, low)
    flipped = right & ((negated.argmax(1) == low) == good)
    change = (negated[:, high] - negated[:, low]) - (plain[:, high] - plain[:, low])
    moved = np.where(good, change < 0, change > 0)

    def told(chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
        understood = int(right[chosen].sum())
        return {
            "pairs": int(chosen.sum()),
            "plain_accuracy": float(right[chosen].mean()),
            "expected_flip_rate": float(flipped[chosen].sum() / understood) if understood else None,
            "moved": float(moved[chosen].mean()),
        }

    everything = np.ones(len(pairs), bool)
    return told(everything) | {
        "not_good": told(good),
        "not_bad": told(~good),
        "per_language": {language: told(languages == language) for language in NEGATIONS},
    }


# Each sarcastic line has a sincere one in nearly the same words: whoever only counts words gets half of them.
SARCASM: Final[Sequence[tuple[str, str, str]]] = (
    # language, meant as negative, meant as positive
    (
        "en",
        "Oh great, another update that breaks everything.",
        "Oh great, another update that fixes everything!",
    ),
    ("en", "I just love waiting two hours on hold.", "I just love waiting for this band to come on."),
    (
        "en",
        "Wow, only three hours late. Impressive, as always.",
        "Wow, three hours of music. Impressive, as always.",
    ),
    (
        "en",
        "Best customer service ever, they hung up on me twice.",
        "Best customer service ever, they fixed it at once.",
    ),
    ("en", "Fantastic, my flight is cancelled again.", "Fantastic, my flight is on time again."),
    (
        "en",
        "Nothing says quality like a screen that cracks on day one.",
        "Nothing says quality like a screen this sharp.",
    ),
    (
        "en",
        "Thanks for charging me twice, you are the best.",
        "Thanks for refunding me so fast, you are the best.",
    ),
    (
        "en",
        "So glad I paid extra for a seat next to the toilet.",
        "So glad I paid extra for a seat at the window.",
    ),
    (
        "en",
        "What a lovely Monday: no heating, no coffee, no train.",
        "What a lovely Monday: sun, coffee and a free seat.",
    ),
    (
        "en",
        "Sure, because what I needed was one more password.",
        "Sure, what I needed was one more weekend like this.",
    ),
    (
        "en",
        "Great job, you managed to ruin a perfect recipe.",
        "Great job, you managed to cook a perfect dinner.",
    ),
    ("en", "Love how the battery lasts a whole hour.", "Love how the battery lasts a whole week."),
    ("en", "Brilliant idea to close the only exit.", "Brilliant idea to open a second exit."),
    (
        "en",
        "Yeah right, because that went so well last time.",
        "Yes, that went so well last time, let's do it again!",
    ),
    (
        "en",
        "My favourite part was when the app deleted my photos.",
        "My favourite part was when the app found my photos.",
    ),
    (
        "en",
        "Such a pleasure to stand in the rain for nothing.",
        "Such a pleasure to walk in the rain with you.",
    ),
    ("de", "Super, schon wieder Schienenersatzverkehr.", "Super, schon wieder pünktlich angekommen."),
    (
        "de",
        "Na toll, das Display ist nach einem Tag kaputt.",
        "Toll, das Display ist nach Jahren noch wie neu.",
    ),
    ("de", "Danke für nichts, liebe Bahn.", "Danke für alles, liebe Bahn."),
    ("de", "Herrlich, drei Stunden in der Warteschleife.", "Herrlich, drei Stunden in der Sonne."),
    (
        "es",
        "Genial, otra vez sin internet. Gracias por nada.",
        "Genial, otra vez con internet. Gracias por todo.",
    ),
    ("es", "Qué maravilla, dos horas de cola para nada.", "Qué maravilla, dos horas de concierto."),
    ("fr", "Génial, encore un train supprimé.", "Génial, encore un train à l'heure."),
    ("fr", "Bravo, trois heures d'attente, quel service !", "Bravo, trois minutes d'attente, quel service !"),
)


def sarcasm(classes: Sequence[str], probabilities: Probabilities) -> dict[str, Any]:
    """Sarcastic lines, which mean negative what they say positively, and sincere ones in like words.

    The share judged as meant of each kind. Sarcastic ones alone would flatter a model that is merely gloomy.
    """
    languages = [language for language, _, _ in SARCASM]
    p = probabilities(
        [line for _, line, _ in SARCASM] + [line for _, _, line in SARCASM], [*languages, *languages]
    )
    predicted = p.argmax(1)
    low, high = classes.index("negative"), classes.index("positive")
    ironic, sincere = predicted[: len(SARCASM)] == low, predicted[len(SARCASM) :] == high
    return {
        "lines": len(SARCASM),
        "sarcastic_judged_negative": float(ironic.mean()),
        "sincere_judged_positive": float(sincere.mean()),
        "both_of_a_pair": float((ironic & sincere).mean()),
    }


def by_label(
    rows: Sequence[Row],
    judge: Judge,
    open_encoder: features.OpenEncoders,
    cache: Path,
    progress: features.Progress = features.quiet,
) -> dict[str, Any]:
    """How posts are judged whose labels say something else than the model's classes: sarcastic, or not.

    Per label the rows and the share of each class. Such labels name no sentiment: this is no accuracy.
    """
    unlabelled = [replace(row, label="", emotion="") for row in rows]
    examples = features.from_rows(unlabelled, judge.classes, open_encoder, cache, progress)
    examples = examples.aligned(judge.slots)
    usable = np.flatnonzero(examples.present.any(1))
    labels = np.array([row.label for row in rows], str)[usable]
    predicted = judge.probabilities(examples.take(usable)).argmax(1)
    return {
        str(label): {
            "rows": int((labels == label).sum()),
            **{name: float((predicted[labels == label] == i).mean()) for i, name in enumerate(judge.classes)},
        }
        for label in np.unique(labels)
    }
