"""Settings of the API server, and of whoever calls it from the command line. Both read CROWDTONE_API_*."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class ApiSettings(Settings):
    """The server. What it shares with its callers is the address; of a token it knows the hash only."""

    # A token in the wrong variable must not be repeated by the error that says so.
    model_config = SettingsConfigDict(env_prefix="CROWDTONE_API_", hide_input_in_errors=True)

    address: str = Field("127.0.0.1:50051", description="host:port to listen at; port 0 takes a free one")
    threads: int = Field(6, ge=1, le=256, description="calls answered at once, streams apart")
    max_streams: int = Field(64, ge=1, le=1024, description="live streams at once, each holding a thread")
    max_waiting_calls: int = Field(
        512, ge=0, description="calls queued for a thread before others are refused"
    )
    query_timeout_s: float = Field(5.0, gt=0, description="longest a statement may run in Postgres")
    max_points: int = Field(20_000, ge=1, description="points of a trend in one answer")
    trend_max_age_ms: int = Field(
        250, ge=0, le=60_000, description="a trend asked for again is read again after this; 0: always"
    )
    trend_kept_bytes: int = Field(
        64 * 1024 * 1024, ge=0, description="answers kept for that; beyond it the oldest go at once"
    )
    max_page_bytes: int = Field(
        2 * 1024 * 1024, ge=1, description="a page of posts ends where its text is more"
    )
    max_request_bytes: int = Field(256 * 1024, ge=1024, description="largest request that is read")
    max_response_bytes: int = Field(
        8 * 1024 * 1024, ge=1024, description="largest message of an answer that is sent"
    )
    stream_interval_s: float = Field(0.5, gt=0, description="least time between two looks of one stream")
    stream_refresh_s: float = Field(
        5.0, gt=0, description="a stream looks again after this, whatever Kafka says or does not"
    )
    ready_interval_s: float = Field(0.5, gt=0, description="how often Postgres is asked whether it is there")
    ready_timeout_s: float = Field(3.0, gt=0, description="no answer for so long: health says NOT_SERVING")
    drain_s: float = Field(10.0, ge=0, description="how long calls under way may take after SIGTERM")
    reflection: bool = Field(False, description="whether to describe the API to tools such as grpcurl")
    reuse_port: bool = Field(False, description="whether several processes may share the address (Linux)")
    token_sha256: SecretStr = Field(
        SecretStr(""), description="SHA-256, in hexadecimal, of each bearer token let in; comma separated"
    )
    tls_cert_file: Path | None = Field(None, description="PEM certificate chain; with the key: TLS only")
    tls_key_file: Path | None = Field(None, description="PEM private key")
    tls_client_ca_file: Path | None = Field(None, description="PEM CA that callers' certificates must be of")

    @field_validator("token_sha256")
    @classmethod
    def _hashes(cls, value: SecretStr) -> SecretStr:
        for one in _split(value):
            if len(one) != 64 or not set(one) <= set("0123456789abcdef"):
                raise ValueError("must be SHA-256 hashes: 64 lower-case hexadecimal digits each")
        return value

    @model_validator(mode="after")
    def _tls(self) -> ApiSettings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("TLS needs both tls_cert_file and tls_key_file")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        return self

    @property
    def token_hashes(self) -> tuple[bytes, ...]:
        """SHA-256 of each token that is let in; empty where none is asked for."""
        return tuple(bytes.fromhex(one) for one in _split(self.token_sha256))


class ApiClientSettings(Settings):
    """Whoever calls the API."""

    model_config = SettingsConfigDict(env_prefix="CROWDTONE_API_")

    address: str = Field("127.0.0.1:50051", description="host:port of the API")
    timeout_s: float = Field(10.0, gt=0, description="how long an answer is waited for")
    token: SecretStr = Field(SecretStr(""), description="bearer token, where the API asks for one")
    tls: bool = Field(False, description="whether the API speaks TLS, with a certificate of a public CA")
    tls_ca_file: Path | None = Field(None, description="PEM CA of the API's certificate; implies tls")
    tls_client_cert_file: Path | None = Field(None, description="PEM certificate of this caller (mTLS)")
    tls_client_key_file: Path | None = Field(None, description="PEM private key of this caller")


def is_loopback(address: str) -> bool:
    """Whether host:port is reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(value: SecretStr) -> list[str]:
    return [one.strip() for one in value.get_secret_value().split(",") if one.strip()]
