"""What the audio encoder is configured with; transcripts go through `shared.settings.TextModelSettings`."""

from __future__ import annotations

import os

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class AudioEncoderSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_AUDIO_")

    model: str = Field(
        "whisper-base", description="of the voice: the default, a Hugging Face id or a local folder"
    )
    max_audio_s: float = Field(30.0, ge=1, le=30, description="seconds of a post's sound that are heard")
    max_batch_frames: int = Field(
        0,
        ge=0,
        description="10 ms frames a batch may hold, padding counted; 0: 2,000 on a CPU, 128,000 on a GPU",
    )
    max_poll_records: int = Field(
        0, ge=0, description="posts of one step at most; 0: 32 on a CPU, 384 on a GPU"
    )
    cuda_graphs: bool = Field(
        False,
        description="on a GPU: write words by recorded launches, not tried on one yet; a start that cannot "
        "record them fails",
    )
    decoders: int = Field(
        0,
        ge=0,
        description="processes that decode, 90 MB each at rest; 0: one on a CPU, one a core for a GPU",
    )
    decode_memory_bytes: int = Field(
        512 * 1024 * 1024,
        ge=64 * 1024 * 1024,
        description="address space one sound may take to decode; one that needs more is absent",
    )
    decode_cpu_s: float = Field(
        3.0, gt=0, description="CPU time one sound may take to decode; one that needs more is absent"
    )

    def frame_budget(self, device: str) -> int:
        return self.max_batch_frames or (128_000 if device == "cuda" else 2_000)

    def posts_of_poll(self, device: str) -> int:
        # Three full batches of clips of 4 to 9 s, whose WAVs are just under `shared.encoding.MEDIA_BYTES`.
        return self.max_poll_records or (384 if device == "cuda" else 32)

    def decoders_for(self, device: str) -> int:
        """A clip takes a CPU a second of computing and next to none of decoding; a GPU is always waiting."""
        return self.decoders or (len(os.sched_getaffinity(0)) if device == "cuda" else 1)
