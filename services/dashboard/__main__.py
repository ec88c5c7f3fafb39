"""`python -m services.dashboard`: the page, served over the gRPC API."""

from __future__ import annotations

import logging

import uvicorn

from services.dashboard.app import create_app
from services.dashboard.settings import ApiClientSettings, DashboardSettings
from shared import worker


def main() -> None:
    settings, api = DashboardSettings(), ApiClientSettings()

    def body() -> None:
        # uvicorn raises the signal again once it has drained; without a handler that would kill us.
        worker.on_sigterm()
        logging.getLogger(__name__).info("http://%s:%d/", settings.host, settings.port)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(settings, api, closing=lambda: server.should_exit),
                host=settings.host,
                port=settings.port,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )
        server.run()

    worker.main("dashboard", body, log_level=settings.log_level)


if __name__ == "__main__":
    main()
