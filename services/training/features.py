"""Rows of a manifest, or a file of ready-made features, as examples: the encoders run here, behind their
cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from services.fusion.model import EMOTIONS
from services.training.cache import EmbeddingCache, content_key
from services.training.examples import Examples, Halves
from services.training.manifest import ManifestError, Row
from shared.device import choose_device
from shared.encoding import Encoder, Input
from shared.messages import Answer, Modality, Vector
from shared.settings import ModelSettings, TextModelSettings

Progress = Callable[[str, int, int], None]
"""(what is being done, done, of how many)."""

Change = Callable[[Modality, Input], Input]

_CHUNK = 256  # inputs between two writes of the cache


def quiet(what: str, done: int, total: int) -> None:
    """A Progress that tells nobody."""


class OpenEncoders(Protocol):
    """Gives the encoder whose first slot is `modality`, loading it on first use."""

    def __call__(self, modality: Modality) -> Encoder: ...


def encoders(model: ModelSettings | None = None, text: TextModelSettings | None = None) -> OpenEncoders:
    """The pipeline's own encoders, with its settings: what is trained on is what will be served.

    Only the precision is "auto" to the pipeline alone: training has time for the numbers as they are.
    """
    model = model or ModelSettings()
    text = (text or TextModelSettings()).without_int8(choose_device(model.device))
    opened: dict[Modality, Encoder] = {}

    def open_encoder(modality: Modality) -> Encoder:
        if modality not in opened:
            if modality is Modality.TEXT:
                from services.text_encoder.encoder import TextEncoder

                opened[modality] = TextEncoder.load(model, text)
            elif modality is Modality.IMAGE:
                from services.image_encoder.encoder import ImageEncoder
                from services.image_encoder.settings import ImageEncoderSettings

                opened[modality] = ImageEncoder.load(model, ImageEncoderSettings())
            else:
                from services.audio_encoder.encoder import AudioEncoder
                from services.audio_encoder.settings import AudioEncoderSettings

                opened[modality] = AudioEncoder.load(model, AudioEncoderSettings(), text)
        return opened[modality]

    return open_encoder


def remember(encoder: Encoder, texts: Sequence[str], vectors: Halves, cache_dir: Path) -> None:
    """Store (N, D) vectors that are known already as the encoder's answers to the texts; zero: no answer."""
    cache = EmbeddingCache(cache_dir, encoder.model_version, encoder.slots)
    (slot,) = encoder.slots
    known = {_text_key(text): vector for text, vector in zip(texts, vectors, strict=True) if vector.any()}
    new = [(key, vector) for key, vector in known.items() if key not in cache]
    cache.put([key for key, _ in new], [{slot: Answer(vector)} for _, vector in new])


def _text_key(text: str) -> bytes:
    return content_key(text.encode("utf-8", "replace"))


def embed(
    encoder: Encoder, inputs: Sequence[Input], cache_dir: Path, progress: Progress = quiet
) -> dict[Modality, tuple[Halves, npt.NDArray[np.int64]]]:
    """Per slot of the encoder: the vectors (K, D), and for each input which of them is its own (-1: absent).

    Asks the encoder only for contents that the cache does not hold, each once.
    """
    cache = EmbeddingCache(cache_dir, encoder.model_version, encoder.slots)
    keys = [content_key(*item.media) if item.media else _text_key(item.text) for item in inputs]
    todo = list({key: item for key, item in zip(keys, inputs, strict=True) if key not in cache}.items())
    name = encoder.slots[0].name.lower()
    for start in range(0, len(todo), _CHUNK):
        progress(f"encoding {name}", start, len(todo))
        chunk = todo[start : start + _CHUNK]
        cache.put([key for key, _ in chunk], encoder.encode([item for _, item in chunk]))
    if todo:
        progress(f"encoding {name}", len(todo), len(todo))
    found = {}
    for slot in encoder.slots:
        vectors: list[Vector] = []
        index: list[int] = []
        places: dict[bytes, int] = {}
        for key in keys:
            vector = cache.get(key)[slot]
            if vector is None:
                index.append(-1)
                continue
            if key not in places:
                places[key] = len(vectors)
                vectors.append(vector)
            index.append(places[key])
        width = encoder.dimensions[slot]
        matrix = np.stack(vectors) if vectors else np.empty((0, width), np.float16)
        found[slot] = (matrix, np.array(index, np.int64))
    return found


def from_rows(
    rows: Sequence[Row],
    classes: Sequence[str],
    open_encoder: OpenEncoders,
    cache_dir: Path,
    progress: Progress = quiet,
    change: Change | None = None,
) -> Examples:
    """The rows' own modalities as examples; a modality that no row has is no slot at all.

    change: what is done to every input before its encoder sees it (`augment.copier`).
    Raises ManifestError for a label that is not one of `classes`.
    """
    vectors: dict[str, Halves] = {}
    columns: list[npt.NDArray[np.int64]] = []
    for modality in (Modality.TEXT, Modality.IMAGE, Modality.AUDIO):
        inputs = [_changed(change, modality, input_of(row, modality)) for row in rows]
        given = [i for i, item in enumerate(inputs) if item is not None]
        if not given:
            continue
        answers = embed(open_encoder(modality), [i for i in inputs if i is not None], cache_dir, progress)
        for slot, (matrix, index) in answers.items():
            column = np.full(len(rows), -1, np.int64)
            column[given] = index
            vectors[slot.name.lower()] = matrix
            columns.append(column)
    if not columns:
        raise ManifestError("no row has a text, an image or an audio file")
    return Examples(
        vectors=vectors,
        index=np.stack(columns, 1),
        labels=numbered([row.label for row in rows], classes),
        emotions=numbered([row.emotion for row in rows], EMOTIONS),
        ids=np.array([row.id for row in rows], str),
        languages=np.array([row.language for row in rows], str),
        groups=np.array([row.group for row in rows], str),
        parts=np.array([row.part for row in rows], str),
    )


def from_file(path: Path, classes: Sequence[str] | None = None) -> tuple[Examples, tuple[str, ...]]:
    """A .npz of ready-made features as examples, and its classes: arrays (N, D) named by modality, `y`,
    `ids`, optional `group`. Widths and modality names are free; what else the file holds is passed over.

    Raises ManifestError when it is no such file. Pickled arrays are refused.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path} is not an .npz file of plain arrays: {error}") from error
    if "y" not in arrays:
        raise ManifestError(f"{path} has no labels: it needs an array `y`")
    count = len(arrays["y"])
    vectors = {
        name: np.clip(array, -65504, 65504).astype(np.float16)
        for name, array in arrays.items()
        if array.ndim == 2 and len(array) == count and np.issubdtype(array.dtype, np.number)
    }
    if not vectors:
        raise ManifestError(f"{path} has no features: it needs a ({count}, D) array per modality")
    bad = [name for name, array in vectors.items() if not np.isfinite(array).all()]
    if bad:
        raise ManifestError(f"{path}: NaN or infinity in {', '.join(bad)}")
    names = [str(label) for label in arrays["y"]]
    classes = tuple(classes) if classes is not None else tuple(sorted(set(names)))
    ids = arrays["ids"].astype(str) if "ids" in arrays else np.array([str(i) for i in range(count)], str)
    examples = Examples(
        vectors=vectors,
        index=np.repeat(np.arange(count)[:, None], len(vectors), 1),
        labels=numbered(names, classes),
        emotions=np.full(count, -1, np.int64),
        ids=ids,
        languages=np.full(count, "und"),
        groups=arrays["group"].astype(str) if "group" in arrays else np.full(count, ""),
        parts=np.full(count, ""),
    )
    return examples, classes


def input_of(row: Row, modality: Modality) -> Input | None:
    """What the encoder of TEXT, IMAGE or AUDIO is given of the row; None where it has nothing for it."""
    if modality is Modality.TEXT:
        return Input(row.text, row.language) if row.text.strip() else None
    path = row.image if modality is Modality.IMAGE else row.audio
    return Input(row.text, row.language, (path.read_bytes(),)) if path is not None else None


def _changed(change: Change | None, modality: Modality, item: Input | None) -> Input | None:
    return item if change is None or item is None else change(modality, item)


def numbered(names: Sequence[str], order: Sequence[str]) -> npt.NDArray[np.int64]:
    """Place of each name in `order`; -1 for the empty name."""
    places: Mapping[str, int] = {name: i for i, name in enumerate(order)} | {"": -1}
    unknown = sorted({name for name in names if name not in places})
    if unknown:
        raise ManifestError(f"labels {', '.join(unknown[:5])} are none of the model's: {', '.join(order)}")
    return np.array([places[name] for name in names], np.int64)
