"""Sounds to vectors of voice and of words, behind the `Encoder` protocol. No Kafka, no environment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from services.audio_encoder import prosody, sounds
from services.audio_encoder.settings import AudioEncoderSettings
from services.audio_encoder.silero import Silero
from services.audio_encoder.sounds import SAMPLE_RATE_HZ, Waveform
from services.audio_encoder.whisper import HOP_SAMPLES, NAME, Heard, Whisper, padded_frames
from shared import metrics
from shared.decoding import Decoders
from shared.device import choose_device, copied, sent, started_on, state_digest
from shared.e5 import E5
from shared.encoding import NO_SPEECH, Input, ahead, answers, halving
from shared.errors import InvalidMessage
from shared.messages import Answer, Modality
from shared.settings import ModelSettings, TextModelSettings

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clip:
    """A post's sound. waveform: (samples,) float32 at 16 kHz, on the model's device. language: that of the
    post's text."""

    waveform: Tensor
    language: str


@dataclass(frozen=True, slots=True)
class VoiceModel:
    """Another model's hearing of the voice: (samples,) at 16 kHz to (dimension,) float32."""

    vector: Callable[[Tensor], Floats]
    version: str
    dimension: int


class AudioEncoder:
    """Posts' sounds to a vector of the voice and one of the words: `prepare` -> `forward` -> `finish`.

    Several sounds of a post are heard one after another, `max_audio_s` in all.
    """

    slots: tuple[Modality, ...] = (Modality.AUDIO, Modality.SPEECH)

    def __init__(
        self,
        whisper: Whisper,
        silero: Silero,
        e5: E5,
        decode: Callable[[bytes], Waveform],
        *,
        device: str,
        max_audio_s: float,
        decoders: int,
        max_batch_frames: int,
        max_batch_tokens: int,
        voice: VoiceModel | None = None,
    ) -> None:
        """decode: a sound's bytes to its first `max_audio_s`, or InvalidMessage. decoders: at once."""
        self._decode = decode
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._whisper = whisper
        self._silero = silero
        self._device = device
        self._e5 = e5
        self._voice = voice
        self._start = started_on(device, self._batch)
        self._max_audio_s = max_audio_s
        self._max_batch_frames = max_batch_frames
        self._max_batch_tokens = max_batch_tokens
        hearing = voice or whisper
        self.model_version = f"{hearing.version}+prosody-1+{e5.model_version}"
        self.dimensions: Mapping[Modality, int] = {
            Modality.AUDIO: hearing.dimension + prosody.DIMENSION,
            Modality.SPEECH: e5.dimension,
        }

    @classmethod
    def load(cls, model: ModelSettings, audio: AudioEncoderSettings, text: TextModelSettings) -> AudioEncoder:
        """Raises ValueError, FileNotFoundError or OSError when a model or the device cannot be had."""
        if model.threads:
            torch.set_num_threads(model.threads)
        device = choose_device(model.device)
        # A transcript is a hundredth of what a clip costs, and int8 a second at the start.
        text = text.without_int8(device)
        decoders = Decoders(
            "services.audio_encoder.sounds:decoder",
            audio.max_audio_s,
            processes=audio.decoders_for(device),
            memory_bytes=audio.decode_memory_bytes,
            cpu_s=audio.decode_cpu_s,
            max_bytes=4 * int(audio.max_audio_s * SAMPLE_RATE_HZ),
        )
        return cls(
            Whisper.load(
                model.cache_dir,
                device=device,
                recorded_frames=audio.frame_budget(device) if device == "cuda" and audio.cuda_graphs else 0,
            ),
            Silero.load(device),
            E5.load(
                text.model,
                cache_dir=model.cache_dir,
                device=device,
                precision=text.precision,
                max_tokens=text.max_tokens,
                prefix=text.prefix,
                adapter=text.adapter,
            ),
            decoders.decode,
            device=device,
            max_audio_s=audio.max_audio_s,
            decoders=audio.decoders_for(device),
            max_batch_frames=audio.frame_budget(device),
            max_batch_tokens=text.token_budget(device),
            voice=None if audio.model == NAME else _hugging_face(audio.model, model.cache_dir, device),
        )

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        return self.finish(self.forward(self.prepare(inputs)))

    def prepare(self, inputs: Sequence[Input]) -> Iterable[Clip | Exception]:
        """The waveform of each post, on the model's device, or why there is none.

        The decoders begin at once with all of them; each is waited for when it is asked for.
        """
        return self._decoders.map(self._clip, inputs)

    def forward(self, clips: Iterable[Clip | Exception]) -> list[Heard | Exception]:
        """What was heard per clip, in order. A batch holds clips of one padded length, up to the budget of
        frames, and goes to the model as soon as it is full, while the next clips are being decoded."""
        seen: list[Clip | Exception] = []

        def counted(frames: int, batch: list[int]) -> list[int]:
            filled = frames * len(batch)
            sounding = sum(
                -(-clip.waveform.numel() // HOP_SAMPLES) for i in batch if isinstance(clip := seen[i], Clip)
            )
            metrics.batched(
                "audio_encoder", budget=self._max_batch_frames, filled=filled, padding=filled - sounding
            )
            return batch

        def batches() -> Iterator[list[int]]:
            begun: defaultdict[int, list[int]] = defaultdict(list)
            for clip in clips:
                seen.append(clip)
                if isinstance(clip, Exception):
                    continue
                frames = padded_frames(clip.waveform.numel())
                begun[frames].append(len(seen) - 1)
                if (len(begun[frames]) + 1) * frames > self._max_batch_frames:
                    yield counted(frames, begun.pop(frames))
            # The longest first, so that those computed side by side end together.
            for frames, batch in sorted(begun.items(), reverse=True):
                yield counted(frames, batch)

        return ahead(self._start, seen, batches())

    def finish(self, heard: Sequence[Heard | Exception]) -> list[Mapping[Modality, Answer]]:
        words = [item.words for item in heard if not isinstance(item, Exception)]
        vectors = iter(halving(self._speech_vectors, words))
        voices = answers([item if isinstance(item, Exception) else item.voice for item in heard])
        speech = answers([item if isinstance(item, Exception) else next(vectors) for item in heard])
        return [
            {
                Modality.AUDIO: voice,
                Modality.SPEECH: replace(said, transcript="" if isinstance(item, Exception) else item.words),
            }
            for item, voice, said in zip(heard, voices, speech, strict=True)
        ]

    def _clip(self, item: Input) -> Clip | Exception:
        parts: list[Waveform] = []
        left = int(self._max_audio_s * SAMPLE_RATE_HZ)
        error = InvalidMessage("no sound in the post")
        for content in item.media:
            if left < sounds.MIN_SOUND_S * SAMPLE_RATE_HZ:
                break
            try:
                parts.append(self._decode(content)[:left])
            except InvalidMessage as reason:
                error = reason
                continue
            left -= parts[-1].size
        if not parts:
            return error
        waveform = torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts))
        return Clip(sent(waveform, self._device), item.language)  # from here, where many do it side by side

    def _batch(self, clips: Sequence[Clip]) -> Callable[[], Sequence[Heard]]:
        samples = [clip.waveform.numel() for clip in clips]
        waveforms = pad_sequence([clip.waveform for clip in clips], batch_first=True)  # (B, longest)
        spoken = self._silero.spoken(waveforms, samples)
        tones = copied(prosody.prosody(waveforms, samples))
        wait = self._whisper.start(waveforms, samples, spoken, [clip.language for clip in clips])
        voices = None if self._voice is None else [self._voice.vector(clip.waveform) for clip in clips]

        def heard() -> list[Heard]:
            found = wait()
            own = voices or [item.voice for item in found]
            return [
                replace(item, voice=np.concatenate([voice, tone]))
                for item, voice, tone in zip(found, own, tones(), strict=True)
            ]

        return heard

    def _speech_vectors(self, words: Sequence[str]) -> list[Floats | Exception]:
        vectors, present = self._e5.embed(words, self._max_batch_tokens)
        return [
            vector if said else InvalidMessage(NO_SPEECH)
            for vector, said in zip(vectors, present, strict=True)
        ]


def _hugging_face(model: str, cache_dir: Path, device: str) -> VoiceModel:
    """wav2vec2, HuBERT, WavLM or Whisper: mean and deviation of the last states.

    One clip at a time: the base models of wav2vec2 and HuBERT were trained without an attention mask, and
    padding would change their vectors.
    """
    from transformers import (
        AutoFeatureExtractor,
        AutoModel,
    )  # 17 s to import: only for those who configure it

    hub = None if Path(model).is_dir() else cache_dir.expanduser() / "huggingface"
    extractor = AutoFeatureExtractor.from_pretrained(model, cache_dir=hub)  # type: ignore[no-untyped-call]
    network = AutoModel.from_pretrained(model, cache_dir=hub, use_safetensors=True)
    network = getattr(network, "encoder", network) if network.config.model_type == "whisper" else network
    network = network.to(device).eval()

    @torch.inference_mode()
    def vector(waveform: Tensor) -> Floats:
        features = extractor(waveform.cpu().numpy(), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt")
        name = extractor.model_input_names[0]
        states = network(features[name].to(device)).last_hidden_state[0].float()
        pooled: Floats = torch.cat([states.mean(0), states.std(0, correction=0)]).cpu().numpy()
        return pooled

    dimension = vector(torch.zeros(SAMPLE_RATE_HZ)).size
    return VoiceModel(vector, f"{model if hub else Path(model).name}@{state_digest(network)}", dimension)
