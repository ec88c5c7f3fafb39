"""The server's settings refuse what would leave it half protected."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from services.api.settings import ApiSettings


def test_a_token_is_not_taken_for_a_hash_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="64 lower-case hexadecimal") as caught:
        ApiSettings(token_sha256="my-secret-token")
    assert "my-secret-token" not in str(caught.value)


def test_several_tokens_are_let_in_while_one_replaces_another() -> None:
    hashes = [hashlib.sha256(token).digest() for token in (b"old", b"new")]
    settings = ApiSettings(token_sha256=", ".join(one.hex() for one in hashes))
    assert settings.token_hashes == tuple(hashes)
    assert hashes[0].hex() not in repr(settings)
    assert ApiSettings().token_hashes == ()


@pytest.mark.parametrize(
    "files",
    [("tls_cert_file",), ("tls_key_file",), ("tls_client_ca_file",), ("tls_cert_file", "tls_client_ca_file")],
)
def test_tls_is_whole_or_not_at_all(files: tuple[str, ...]) -> None:
    values: dict[str, Any] = {name: Path("x.pem") for name in files}
    with pytest.raises(ValueError, match="tls_cert_file and tls_key_file"):
        ApiSettings(**values)
