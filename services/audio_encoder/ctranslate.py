"""Whisper through CTranslate2, in int8: what a CPU computes. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import torch
from torch import Tensor

from services.audio_encoder.network import Tokens, Written


class CTranslated:
    """The model on the CPU. As many threads may be in it as torch has here, each is computed for by one."""

    def __init__(self, folder: Path, tokens: Tokens, *, compute_type: str = "int8") -> None:
        self._tokens = tokens
        threads = torch.get_num_threads()
        self._model = ctranslate2.models.Whisper(
            str(folder), device="cpu", compute_type=compute_type, inter_threads=threads, intra_threads=1
        )
        torch.set_num_threads(threads)  # CTranslate2 has told OpenMP 1, which torch takes for its own

    def encode(self, features: Tensor) -> Tensor:
        """(B, 80, frames) log-mel to (B, frames / 2, D) states, one per 20 ms."""
        view = ctranslate2.StorageView.from_array(features.contiguous().numpy())
        return torch.from_numpy(
            np.array(self._model.encode(view, to_cpu=True)).astype(np.float32, copy=False)
        )

    def write(
        self, states: Tensor, wanted: Tensor, language: Callable[[Tensor, Tensor], Tensor], max_tokens: int
    ) -> Callable[[], list[Written]]:
        """See `network.WhisperNetwork.write`; here all is done at once."""
        silent = Written([], 0.0, 1.0, 0)
        written = [silent] * len(wanted)
        rows: list[int] = wanted.nonzero().flatten().tolist()
        if not rows:
            return lambda: written
        tokens = self._tokens
        view = ctranslate2.StorageView.from_array(states[rows].contiguous().numpy())
        ranked = [best[0] for best in self._model.detect_language(view)]
        ids = torch.tensor([tokens.named(name) for name, _ in ranked])
        chances = torch.tensor([chance for _, chance in ranked])
        languages = torch.zeros(len(wanted), dtype=torch.int64)
        languages[rows] = ids
        likely = torch.zeros(len(wanted))
        likely[rows] = chances
        chosen: list[int] = language(languages, likely).tolist()
        results: list[Any] = self._model.generate(
            view,
            [[tokens.start, chosen[i], tokens.transcribe, tokens.no_timestamps] for i in rows],
            beam_size=1,
            max_length=2 * max_tokens,  # of which it writes half
            return_scores=True,
            return_no_speech_prob=True,
        )
        for i, result in zip(rows, results, strict=True):
            written[i] = Written(result.sequences_ids[0], result.scores[0], result.no_speech_prob, chosen[i])
        return lambda: written
