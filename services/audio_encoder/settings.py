"""What the audio encoder is configured with; transcripts go through `shared.settings.TextModelSettings`."""

from __future__ import annotations

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
        description="10 ms frames a batch may hold, padding counted; 0: 2,000 on a CPU, 6,000 on a GPU",
    )
    max_poll_records: int = Field(
        32, ge=1, description="posts of one step at most: a clip costs a second of CPU"
    )
    decoders: int = Field(1, ge=1, description="processes that decode, each of them 90 MB at rest")
    decode_memory_bytes: int = Field(
        512 * 1024 * 1024,
        ge=64 * 1024 * 1024,
        description="address space one sound may take to decode; one that needs more is absent",
    )
    decode_cpu_s: float = Field(
        3.0, gt=0, description="CPU time one sound may take to decode; one that needs more is absent"
    )

    def frame_budget(self, device: str) -> int:
        return self.max_batch_frames or (6_000 if device == "cuda" else 2_000)
