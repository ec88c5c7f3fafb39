"""What the dashboard is configured with."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class DashboardSettings(Settings):
    """The page's own server."""

    model_config = SettingsConfigDict(env_prefix="CROWDTONE_DASHBOARD_")

    host: str = Field("127.0.0.1", description="address to listen on; the page has no login, so loopback")
    port: int = Field(8080, ge=1, le=65535, description="port to listen on")
    allowed_hosts: str = Field(
        "127.0.0.1,localhost",
        description="host names that requests may carry, comma separated: stops DNS rebinding",
    )
    media_max_bytes: int = Field(32 * 1024 * 1024, gt=0, description="largest picture or sound passed on")
    log_level: str = Field("INFO", description="DEBUG | INFO | WARNING | ERROR")


class ApiClientSettings(Settings):
    """Where the API is. The same variables as those of `crowdtone query`."""

    model_config = SettingsConfigDict(env_prefix="CROWDTONE_API_")

    address: str = Field("127.0.0.1:50051", description="host:port of the API")
    timeout_s: float = Field(10.0, gt=0, description="how long an answer is waited for")
    token: SecretStr = Field(SecretStr(""), description="bearer token, where the API asks for one")
    tls: bool = Field(False, description="whether the API speaks TLS, with a certificate of a public CA")
    tls_ca_file: Path | None = Field(None, description="PEM CA of the API's certificate; implies tls")
    tls_client_cert_file: Path | None = Field(None, description="PEM certificate of this caller (mTLS)")
    tls_client_key_file: Path | None = Field(None, description="PEM private key of this caller")
