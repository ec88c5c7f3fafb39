"""What the image encoder is configured with."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class ImageEncoderSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_IMAGE_")

    model: str = Field("efficientnet-lite0", description="the default, a Hugging Face id or a local folder")
    max_pixels: int = Field(
        40_000_000, ge=64, description="larger pictures are not decoded: up to 800 MB of memory"
    )
    max_batch_pixels: int = Field(
        0,
        ge=0,
        description="pixels a batch of the model may hold; 0: 2 pictures of 224x224 on a CPU, 64 on a GPU",
    )
    max_poll_records: int = Field(
        0, ge=0, description="posts of one step at most; 0: 128 on a CPU, 512 on a GPU"
    )
    decoders: int = Field(1, ge=1, description="processes that decode, each of them 40 MB at rest")
    decode_memory_bytes: int = Field(
        1024 * 1024 * 1024,
        ge=64 * 1024 * 1024,
        description="address space one picture may take to decode; one that needs more is absent",
    )
    decode_cpu_s: float = Field(
        3.0, gt=0, description="CPU time one picture may take to decode; one that needs more is absent"
    )
    decode_on_device: bool = Field(
        False, description="decode JPEGs by nvJPEG, in this process and without its limits; cuda only"
    )

    def pixel_budget(self, device: str) -> int:
        return self.max_batch_pixels or (64 if device == "cuda" else 2) * 224 * 224

    def posts_of_poll(self, device: str) -> int:
        return self.max_poll_records or (512 if device == "cuda" else 128)
