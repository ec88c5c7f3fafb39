"""Fits the lexicon of a text model: what runs of characters say of the labels.

It learns its training texts nearly by heart, so whatever is trained on top of it must not see what it says
of those: `out_of_fold` says it from the other texts. Source: Wolpert 1992 (stacked generalisation).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.linear_model import SGDClassifier
from sklearn.preprocessing import normalize

from services.training.examples import Examples
from shared.ngrams import BUCKETS, Lexicon, counts

Ints = npt.NDArray[np.int64]

_FOLDS = 5
_EPOCHS = 15


def fit(texts: Sequence[str], labels: Ints, classes: int, seed: int = 0) -> Lexicon:
    """The lexicon of labelled texts; labels: (N,) class, texts with -1 are left out."""
    return _fit(_counted(texts), labels, classes, seed)


def out_of_fold(texts: Sequence[str], labels: Ints, classes: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """(N, classes) what lexicons of the other texts say of each text. Equal texts are in one fold."""
    matrix = _counted(texts)
    folds = np.array([crc32(text.casefold().encode("utf-8", "replace")) % _FOLDS for text in texts])
    said = np.zeros((len(texts), classes), np.float32)
    for fold in range(_FOLDS):
        own = np.flatnonzero(folds == fold)
        others = np.flatnonzero(folds != fold)
        if len(own):
            lexicon = _fit(matrix[others], labels[others], classes, seed)
            said[own] = lexicon.logits([texts[i] for i in own.tolist()])
    return said


def as_if_unseen(examples: Examples, texts: Sequence[str], classes: int, seed: int = 0) -> Examples:
    """Examples that the lexicon was fitted to, with what it would say of them otherwise.

    texts: (N,) of the rows. What the lexicon says are the last `classes` values of the text vectors.
    """
    vectors = examples.vectors["text"].copy()
    column = examples.index[:, examples.slots.index("text")]
    given = np.flatnonzero(column >= 0)
    said = out_of_fold([texts[i] for i in given.tolist()], examples.labels[given], classes, seed)
    vectors[column[given], -classes:] = said
    return replace(examples, vectors={**examples.vectors, "text": vectors})


def _fit(matrix: csr_matrix, labels: Ints, classes: int, seed: int) -> Lexicon:
    labelled = np.flatnonzero(labels >= 0)
    matrix, labels = matrix[labelled], labels[labelled]
    seen = np.bincount(matrix.indices, minlength=BUCKETS)
    rarity = (np.log((1 + matrix.shape[0]) / (1 + seen)) + 1).astype(np.float32)
    weights = np.zeros((BUCKETS, classes), np.float32)
    bias = np.full(classes, -10.0, np.float32)  # of a class without a text
    known = np.unique(labels)
    if len(known) < 2:
        bias[known] = 0
        return Lexicon(rarity, weights, bias)
    weighed = matrix.copy()
    weighed.data = weighed.data * rarity[weighed.indices]
    model = SGDClassifier(
        loss="log_loss", alpha=1e-5, max_iter=_EPOCHS, tol=None, class_weight="balanced", random_state=seed
    ).fit(normalize(weighed), labels)
    if len(model.classes_) == 2:  # one line between the two: each side of it is a class
        weights[:, model.classes_] = np.concatenate([-model.coef_, model.coef_]).T / 2
        bias[model.classes_] = np.concatenate([-model.intercept_, model.intercept_]) / 2
    else:
        weights[:, model.classes_] = model.coef_.T
        bias[model.classes_] = model.intercept_
    return Lexicon(rarity, weights, bias)


def _counted(texts: Sequence[str]) -> csr_matrix:
    found = counts(texts)
    return csr_matrix((found.values, found.buckets, found.offsets), shape=(len(texts), BUCKETS))
