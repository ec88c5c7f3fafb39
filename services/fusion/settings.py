"""What fusion is configured with. Read once, by __main__."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings

SHIPPED_WEIGHTS: Final = Path(__file__).with_name("weights")


class FusionSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_FUSION_")

    grace_s: float = Field(30.0, gt=0, description="how long a post waits for a modality before it is closed")
    late_s: float = Field(
        86_400.0, gt=0, description="how long the parts of a post closed incomplete are kept for the rest"
    )
    max_open_posts: int = Field(
        200_000, ge=1, description="above this the oldest are closed before their time: bounds memory"
    )
    max_open_bytes: int = Field(
        512 * 1024 * 1024,
        ge=1,
        description="above so many bytes of open posts, about, the oldest are closed too",
    )
    max_poll_records: int = Field(
        64, ge=1, description="records (each of up to some hundred posts) a poll returns"
    )
    model: Path = Field(SHIPPED_WEIGHTS, description="folder of the fusion model")
    device: str = Field("auto", description="auto | cpu | cuda")
