"""A caller's channel to the API: address, TLS and token from settings. For the command line and for tests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc

from services.api.settings import ApiClientSettings, is_loopback

log = logging.getLogger(__name__)

MAX_RESPONSE_BYTES = 64 * 1024 * 1024


@contextmanager
def channel(settings: ApiClientSettings) -> Iterator[grpc.Channel]:
    """Connects when it is first used. Raises OSError where a TLS file cannot be read."""
    options = [("grpc.max_receive_message_length", MAX_RESPONSE_BYTES)]
    if settings.tls or settings.tls_ca_file is not None:
        opened = grpc.secure_channel(settings.address, _credentials(settings), options=options)
    else:
        opened = grpc.insecure_channel(settings.address, options=options)
    token = settings.token.get_secret_value()
    if token and not (settings.tls or settings.tls_ca_file or is_loopback(settings.address)):
        log.warning("the token goes to %s in plain text: set CROWDTONE_API_TLS_CA_FILE", settings.address)
    with opened:
        yield grpc.intercept_channel(opened, _Bearer(token)) if token else opened


def _credentials(settings: ApiClientSettings) -> grpc.ChannelCredentials:
    ca, cert, key = settings.tls_ca_file, settings.tls_client_cert_file, settings.tls_client_key_file
    return grpc.ssl_channel_credentials(
        root_certificates=ca.read_bytes() if ca else None,
        private_key=key.read_bytes() if key else None,
        certificate_chain=cert.read_bytes() if cert else None,
    )


class _Details(NamedTuple):
    """What grpc reads of a call's details."""

    method: str
    timeout: float | None
    metadata: Sequence[tuple[str, str | bytes]] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Bearer(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    """Adds the token to every call. (grpc's call credentials want TLS even on loopback.)"""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _with_token(self, details: Any) -> _Details:
        return _Details(
            details.method,
            details.timeout,
            [*(details.metadata or ()), self._header],
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)
