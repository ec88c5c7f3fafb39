"""What the text encoder alone is configured with; its model is in `shared.settings.TextModelSettings`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class TextEncoderSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_TEXT_ENCODER_")

    max_poll_records: int = Field(500, ge=1, description="posts of one step at most")
