"""What every service is configured with: environment, then the local stack's env file, then these defaults.

Each field names its unit and has one line. `PostgresSettings.url` is the variable CROWDTONE_POSTGRES_URL.
Secrets can also be files: CROWDTONE_SECRETS_DIR names a folder with one file per variable, in lower case.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


def local_dir() -> Path:
    """Where the local stack keeps its data, logs and env file (CROWDTONE_LOCAL_DIR, default `.local`)."""
    return Path(os.environ.get("CROWDTONE_LOCAL_DIR", ".local"))


class Settings(BaseSettings):
    """Common sources of all settings; the env file is read when an object is made, never on import."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore")

    def __init__(self, **values: Any) -> None:
        super().__init__(
            _env_file=local_dir() / "stack.env",
            _secrets_dir=os.environ.get("CROWDTONE_SECRETS_DIR"),
            **values,
        )


class KafkaSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_KAFKA_")

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port, comma separated")
    topic_prefix: str = Field(
        "", description="put before every topic and group name: several systems, one cluster"
    )
    partitions: int = Field(4, ge=1, description="partitions of the topics of the join")
    replication_factor: int = Field(1, ge=1, description="copies of each partition")
    max_poll_records: int = Field(500, ge=1, description="records a poll returns at most")
    fetch_max_wait_ms: int = Field(
        50, ge=1, description="how long the broker holds an empty fetch: rules idle latency"
    )
    session_timeout_ms: int = Field(
        10_000, ge=1_000, description="a silent member loses its partitions after this"
    )
    max_poll_interval_ms: int = Field(
        600_000, ge=1_000, description="longest step before its partitions are taken away"
    )
    retry_s: float = Field(
        60.0, gt=0, description="how long an unreachable broker is retried before the process exits"
    )
    compression: str = Field("lz4", description="none | gzip | lz4")


class PostgresSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_POSTGRES_")

    url: SecretStr = Field(
        SecretStr("postgresql+psycopg2://crowdtone@127.0.0.1:5432/crowdtone"), description="SQLAlchemy URL"
    )
    retry_s: float = Field(
        60.0, gt=0, description="how long an unreachable server is retried before the process exits"
    )


class RedisSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_REDIS_")

    url: SecretStr = Field(SecretStr("redis://127.0.0.1:6379/0"), description="redis:// or rediss://")
    timeout_s: float = Field(1.0, gt=0, description="a cache that answers later than this is treated as away")


class EmbeddingCacheSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_EMBEDDING_CACHE_")

    ttl_s: int = Field(
        6 * 3600, ge=0, description="how long an answer is kept in Redis for reposts; 0: none is kept"
    )


class MediaSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_MEDIA_")

    url: str = Field("file://.local/media", description="fsspec URL of the content-addressed media store")
    max_bytes: int = Field(
        32 * 1024 * 1024, gt=0, description="largest picture or sound that is stored or read"
    )


class WorkerSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_WORKER_")

    metrics_port: int = Field(
        0, ge=0, le=65535, description="port on loopback of /metrics, /livez, /readyz; 0: none"
    )
    heartbeat_s: float = Field(2.0, gt=0, description="how often a process reports itself to operators")
    log_level: str = Field("INFO", description="DEBUG | INFO | WARNING | ERROR")
    stall_s: float = Field(
        300.0,
        gt=0,
        description="a turn of the loop that takes longer is stuck: the process ends, to be restarted",
    )
    drain_s: float = Field(
        50.0, gt=0, description="longest from SIGTERM to the end; then the turn under way is left undone"
    )
    dead_letter_limit: int = Field(200, ge=1, description="dead letters in a row that stop a service")


class ModelSettings(Settings):
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_")

    device: str = Field("auto", description="auto | cpu | cuda, for every model of the process")
    threads: int = Field(0, ge=0, description="CPU threads of a model; 0 for one per core")
    compile: bool = Field(
        False,
        description="compile the text model at start, on a GPU: half a minute, for a tenth more texts/s",
    )
    cache_dir: Path = Field(Path("~/.cache/crowdtone"), description="where converted weights are kept")


class TextModelSettings(Settings):
    """The text model; the audio encoder embeds its transcripts with the same one."""

    model_config = SettingsConfigDict(env_prefix="CROWDTONE_TEXT_")

    model: str = Field(
        "multilingual-e5-small-q4", description="the default, a Hugging Face id or a local folder"
    )
    adapter: str = Field(
        "shipped",
        description='"shipped": the default model\'s own; "none"; or the folder of a fine-tuned adapter',
    )
    precision: Literal["auto", "float32", "float16", "int8"] = Field(
        "auto",
        description="of the arithmetic; auto: float16 on a GPU; on a CPU the text encoder computes BERTs, as "
        "the default is one, in int8, and all else is float32",
    )
    prefix: str | None = Field(None, description='put before every text; unset: "query: " for E5 models only')
    max_tokens: int = Field(128, ge=8, le=8192, description="longer texts are cut; E5 takes up to 512")
    max_batch_tokens: int = Field(
        0, ge=0, description="tokens a batch may hold, padding counted; 0: 384 on a CPU, 32,768 on a GPU"
    )

    def without_int8(self, device: str) -> TextModelSettings:
        """For those who want int8 only where it is asked for by name."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "float16" if device == "cuda" else "float32"})

    def token_budget(self, device: str) -> int:
        return self.max_batch_tokens or (32_768 if device == "cuda" else 384)
