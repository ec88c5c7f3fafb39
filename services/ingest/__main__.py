"""`python -m services.ingest`: the same commands as `crowdtone ingest`."""

from __future__ import annotations

from services.ingest.cli import app

if __name__ == "__main__":
    app()
