"""The gRPC server around the servicer: threads, limits, TLS, health. Reads no environment."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos.crowdtone.v1 import api_pb2, api_pb2_grpc
from services.api.guard import Guard
from services.api.servicer import Servicer
from services.api.settings import ApiSettings

SERVICE: Final = api_pb2.DESCRIPTOR.services_by_name["CrowdtoneService"].full_name
# "" is the whole server, in the health protocol.
NAMES: Final = ("", SERVICE)


class Readiness:
    """Health as it is: SERVING while Postgres answered within `timeout_s`, NOT_SERVING otherwise."""

    def __init__(self, ping: Callable[[], object], *, interval_s: float, timeout_s: float) -> None:
        """ping: raises whatever it likes where the dependency is away; may hang."""
        self.servicer = health.HealthServicer()
        self._ping = ping
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._answered_s = float("-inf")
        self._failed = False
        self._stopped = threading.Event()
        self._publish(False)
        # Two threads: one asks and may hang with the server it asks; the other has a clock.
        self._threads = [
            threading.Thread(target=body, name=name, daemon=True)
            for name, body in (("ping", self._ask), ("health", self._judge))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """NOT_SERVING from now on: new calls should go elsewhere."""
        self._stopped.set()
        self.servicer.enter_graceful_shutdown()

    def ready(self) -> bool:
        return not self._failed and time.monotonic() - self._answered_s <= self._timeout_s

    def _ask(self) -> None:
        while not self._stopped.is_set():
            try:
                self._ping()
                self._answered_s = time.monotonic()
                self._failed = False
            except Exception:
                self._failed = True
            self._stopped.wait(self._interval_s)

    def _judge(self) -> None:
        published = False
        while not self._stopped.wait(self._interval_s / 2):
            if self.ready() != published:
                published = not published
                self._publish(published)

    def _publish(self, ready: bool) -> None:
        status = (
            health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in NAMES:
            self.servicer.set(name, status)


def build(settings: ApiSettings, servicer: Servicer, readiness: Readiness) -> tuple[grpc.Server, int]:
    """A server that listens and does not answer yet, and its port.

    Raises RuntimeError where the address is taken, OSError where a TLS file cannot be read.
    """
    threads = settings.threads + settings.max_streams
    # Streams hold their threads for hours; the fewer there are for the rest, the less they are in each
    # other's way. `threads` more, for what is no StreamTrends: pictures must come however many of those run.
    streams = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="stream")
    server = grpc.server(
        ThreadPoolExecutor(max_workers=settings.threads, thread_name_prefix="call"),
        interceptors=[Guard(settings.token_hashes, streams)],
        maximum_concurrent_rpcs=threads + settings.max_waiting_calls,
        options=[
            ("grpc.max_receive_message_length", settings.max_request_bytes),
            ("grpc.max_send_message_length", settings.max_response_bytes),
            # Otherwise a second server started by mistake would silently take half of the calls.
            ("grpc.so_reuseport", int(settings.reuse_port)),
            # Callers that vanished without a word are found within a minute, and their threads freed.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ],
    )
    api_pb2_grpc.add_CrowdtoneServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(readiness.servicer, server)
    if settings.reflection:
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    credentials = _credentials(settings)
    if credentials is None:
        return server, server.add_insecure_port(settings.address)
    return server, server.add_secure_port(settings.address, credentials)


def _credentials(settings: ApiSettings) -> grpc.ServerCredentials | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    client_ca = settings.tls_client_ca_file
    return grpc.ssl_server_credentials(
        [(settings.tls_key_file.read_bytes(), settings.tls_cert_file.read_bytes())],
        root_certificates=client_ca.read_bytes() if client_ca else None,
        require_client_auth=client_ca is not None,
    )
