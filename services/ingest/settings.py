"""What ingest can be told, read once from the environment."""

from __future__ import annotations

from typing import Final

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from shared import topics
from shared.settings import Settings

# A dead letter is the line itself with some headers, and must fit into one Kafka record.
LONGEST_LINE_BYTES: Final = topics.MAX_MESSAGE_BYTES - 64 * 1024

PLATFORMS: Final = frozenset(
    # "news" is a news site's own posts and comments; "other" is everything else.
    {"bluesky", "facebook", "instagram", "linkedin", "mastodon", "news", "other", "pinterest", "reddit"}
).union({"rss", "telegram", "threads", "tiktok", "tumblr", "twitch", "vk", "weibo", "x", "youtube"})


class IngestSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_INGEST_")

    platforms: frozenset[str] = Field(
        PLATFORMS,
        description="platforms posts may come from, as a JSON list; a post of another one is a dead letter",
    )
    max_text_chars: int = Field(65_536, ge=1, description="a longer text is a dead letter")
    max_media: int = Field(32, ge=0, description="a post with more pictures and sounds is a dead letter")
    max_line_bytes: int = Field(
        4 * 1024 * 1024,
        ge=1024,
        le=LONGEST_LINE_BYTES,
        description="a longer line is a dead letter of its first so many bytes",
    )
    future_skew_s: float = Field(
        3600.0, ge=0, description="an event time further ahead of our clock is a dead letter"
    )
    batch_posts: int = Field(500, ge=1, description="lines produced in one go at most")
    batch_bytes: int = Field(8 * 1024 * 1024, ge=1, description="bytes of lines produced in one go, about")
    batch_s: float = Field(0.2, gt=0, description="how long a batch waits for more lines")
    dedup_ttl_s: int = Field(7 * 24 * 3600, ge=1, description="how long a post is remembered as seen")
    topics_refresh_s: float = Field(5.0, gt=0, description="how often the tracked topics are read again")
    dead_letter_limit: int = Field(
        1000, ge=1, description="dead letters in a row, without one post, that stop it: the wrong file?"
    )
    media_retry_s: float = Field(
        30.0, gt=0, description="how long a media store that fails is retried before the process exits"
    )
    socket_retry_s: float = Field(
        300.0, gt=0, description="how long a websocket that is away is retried before the process exits"
    )
    cursor_rewind_s: float = Field(
        5.0, ge=0, description="how far before the last event a websocket resumes; doubles are recognised"
    )


class AuthorSettings(Settings):
    """Apart, because its variable is CROWDTONE_AUTHOR_KEY: the key is the deployment's, not only ingest's."""

    model_config = SettingsConfigDict(env_prefix="CROWDTONE_")

    author_key: SecretStr | None = Field(
        None, description="secret under which author ids are hashed; 16 characters or more"
    )

    @field_validator("author_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and 0 < len(value.get_secret_value()) < 16:
            raise ValueError("16 characters or more")
        return value


class FetchSettings(Settings):
    """Of pictures and sounds at addresses; whether they are fetched at all is an option of the command."""

    model_config = SettingsConfigDict(env_prefix="CROWDTONE_FETCH_")

    total_s: float = Field(
        15.0, gt=0, description="longest one fetch may take: name, redirects and content together"
    )
    batch_s: float = Field(
        20.0, gt=0, description="longest the fetches of one batch may take; what is not there then is absent"
    )
    max_redirects: int = Field(3, ge=0, le=20, description="redirects that are followed, each checked anew")
    concurrency: int = Field(
        8, ge=1, le=256, description="fetches at once, each with up to a medium in memory"
    )
    allow_hosts: frozenset[str] = Field(
        frozenset(),
        description='fetched from whatever their address, as a JSON list: ["media.example:8080"]',
    )
