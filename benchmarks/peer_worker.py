"""Runs a peer's model in an environment of the peer's own; `benchmarks.peers` starts it.

`python peer_worker.py sentence_transformers|pipeline FOLDER`: each line of standard input is a JSON list of
texts, answered by a line of JSON once their vectors are there: the first few of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

SHOWN = 4
BATCH = 32

Vectors = Callable[[Sequence[str]], Any]


def sentence_transformers(folder: str) -> Vectors:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device="cpu")
    return lambda texts: model.encode(list(texts), batch_size=BATCH, show_progress_bar=False)


def pipeline(folder: str) -> Vectors:
    """One text after another, the mean of its tokens' states: as the documentation of transformers has it."""
    import numpy as np
    from transformers import pipeline as of_transformers

    pipe = of_transformers("feature-extraction", model=folder, tokenizer=folder, device="cpu")
    return lambda texts: np.stack([pipe(text, return_tensors=True)[0].mean(0).numpy() for text in texts])


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    vectors = {"sentence_transformers": sentence_transformers, "pipeline": pipeline}[sys.argv[1]](sys.argv[2])
    for line in sys.stdin:
        print(json.dumps(vectors(json.loads(line))[:SHOWN].tolist()), file=answers, flush=True)


if __name__ == "__main__":
    main()
