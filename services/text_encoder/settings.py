"""What the text encoder alone is configured with; its model is in `shared.settings.TextModelSettings`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class TextEncoderSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_TEXT_ENCODER_")

    max_poll_records: int = Field(
        0, ge=0, description="posts of one step at most; 0: 128 on a CPU, 4,000 on a GPU"
    )

    def posts_of_poll(self, device: str) -> int:
        return self.max_poll_records or (4_000 if device == "cuda" else 128)
