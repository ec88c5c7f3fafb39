"""Words to vectors: the text model behind the `Encoder` protocol. No Kafka, no protobuf, no environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from shared import metrics
from shared.device import choose_device, started_on
from shared.e5 import E5, Reading, token_batches
from shared.encoding import Input, ahead, answers, halving
from shared.errors import InvalidMessage
from shared.messages import Answer, Modality
from shared.settings import ModelSettings, TextModelSettings

Floats = npt.NDArray[np.float32]


class TextEncoder:
    """Posts' texts to vectors: `prepare` (CPU) -> `forward` (device) -> `finish` (numpy)."""

    slots: tuple[Modality, ...] = (Modality.TEXT,)

    def __init__(self, e5: E5, *, max_batch_tokens: int) -> None:
        self._e5 = e5
        self._max_batch_tokens = max_batch_tokens
        self._start = started_on(e5.device.type, self._batch)
        self.model_version = e5.model_version
        self.dimensions: Mapping[Modality, int] = {Modality.TEXT: e5.dimension}

    @classmethod
    def load(cls, model: ModelSettings, text: TextModelSettings) -> TextEncoder:
        """Raises ValueError, FileNotFoundError or OSError when the model or the device cannot be had."""
        if model.threads:
            torch.set_num_threads(model.threads)
        device = choose_device(model.device)
        e5 = E5.load(
            text.model,
            cache_dir=model.cache_dir,
            device=device,
            precision=text.precision,
            max_tokens=text.max_tokens,
            prefix=text.prefix,
            adapter=text.adapter,
        )
        budget = text.token_budget(device)
        if model.compile:
            e5.compile_for(budget)
        return cls(e5, max_batch_tokens=budget)

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        return self.finish(self.forward(self.prepare(inputs)))

    def prepare(self, inputs: Sequence[Input]) -> list[Reading | Exception]:
        """Token ids of each text and what the lexicon says of it, or why there are none."""
        rows = halving(self._e5.read, [item.text for item in inputs])
        return [
            row if isinstance(row, Exception) or row.ids else InvalidMessage("empty text") for row in rows
        ]

    def forward(self, rows: Sequence[Reading | Exception]) -> list[Floats | Exception]:
        """(D,) float32 per row, in order. A batch holds rows of similar length, up to the token budget."""
        lengths = [0 if isinstance(row, Exception) else len(row.ids) for row in rows]
        batches = token_batches(lengths, self._max_batch_tokens)
        filled = sum(self._e5.taken([lengths[i] for i in batch]) for batch in batches)
        metrics.batched(
            "text_encoder",
            budget=len(batches) * self._max_batch_tokens,
            filled=filled,
            padding=filled - sum(lengths),
        )
        return ahead(self._start, rows, batches)

    def finish(self, vectors: Sequence[Floats | Exception]) -> list[Mapping[Modality, Answer]]:
        return [{Modality.TEXT: answer} for answer in answers(vectors)]

    def _batch(self, rows: Sequence[Reading]) -> Callable[[], Sequence[Floats]]:
        wait = self._e5.start(rows)
        return lambda: list(wait())
