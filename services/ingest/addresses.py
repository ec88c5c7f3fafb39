"""Which addresses may be fetched from. Pure: nothing is resolved here, and nothing connects.

Whoever writes a post chooses the address of its picture, and we stand inside somebody's network: so what may
be asked is only what any stranger could ask, the public internet on its two web ports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import quote, urlsplit

from shared.errors import InvalidMessage

MAX_ADDRESS_CHARS: Final = 2048
PORTS: Final = {"http": 80, "https": 443}

_LABELS = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# What a path and a query may hold as they are (RFC 3986 section 3.3 and 3.4); the rest is percent-encoded.
_AS_IT_IS: Final = "/%:=&?~+!$,;'@()*[]|"

# Source: IANA IPv4 Special-Purpose Address Registry (RFC 6890), and multicast.
_REFUSED_4: Final = tuple(
    (ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared, carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("168.63.129.16/32", "metadata"),  # Azure's, though in a public range
        ("169.254.0.0/16", "link-local, metadata"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments, metadata"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
# Global unicast is 2000::/3 (RFC 4291 section 2.4); what is outside is named for the reason's sake only.
_GLOBAL_6: Final = ip_network("2000::/3")
# Source: IANA IPv6 Special-Purpose Address Registry.
_REFUSED_6: Final = tuple(
    (ip_network(network), what)
    for network, what in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("::ffff:0:0:0/96", "IPv4-translated"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b::/96", "NAT64"),
        ("64:ff9b:1::/48", "NAT64"),
        ("100::/64", "discard"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "protocol assignments"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fc00::/7", "unique local, metadata"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
# An interface id of ISATAP (RFC 5214 section 6.1) carries an IPv4 address under any prefix.
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)


@dataclass(frozen=True, slots=True)
class Target:
    """One address, taken apart and made plain.

    host: ASCII, lower case; an IPv6 address without its brackets.
    path: with the query, percent-encoded ASCII.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_port(self) -> str:
        return f"{self.bracketed}:{self.port}"

    @property
    def bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


def target(address: str) -> Target:
    """Raises InvalidMessage when it is no http(s) address, hides something, or names its host in a notation
    that two readers could read as two hosts.
    """
    if len(address) > MAX_ADDRESS_CHARS:
        raise InvalidMessage(f"an address of {len(address)} characters; the limit is {MAX_ADDRESS_CHARS}")
    # urlsplit drops tabs and line ends without a word; browsers take a backslash for a slash.
    if not address.isprintable() or "\\" in address:
        raise InvalidMessage(f"no plain address: {address[:80]!a}")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidMessage(f"no address: {error}: {address[:80]!a}") from error
    if parts.scheme not in PORTS:
        raise InvalidMessage(f"only http and https are fetched, not {parts.scheme[:20]!a}")
    if "@" in parts.netloc:
        raise InvalidMessage("an address with credentials is not fetched")
    if port == 0:
        raise InvalidMessage("port 0")
    query = f"?{parts.query}" if parts.query else ""
    path = parts.path if parts.path.startswith("/") else f"/{parts.path}"
    return Target(
        parts.scheme,
        _host(host, "[" in parts.netloc),
        port or PORTS[parts.scheme],
        quote(path + query, safe=_AS_IT_IS, errors="replace"),
    )


def _host(host: str, bracketed: bool) -> str:
    try:
        if bracketed:
            if "%" in host:  # a zone names a link of ours
                raise ValueError("a zone")
            return str(IPv6Address(host))
        plain = host.encode("idna").decode("ascii").lower()
        if plain.endswith("."):
            plain = plain[:-1]
        if len(plain) > 253 or not _LABELS.fullmatch(plain):
            raise ValueError("not a host name")
        # WHATWG URL, "ends in a number": 2130706433, 0x7f.1 and 0177.0.0.1 are 127.0.0.1 to some readers.
        if _NUMBER.fullmatch(plain.rpartition(".")[2]):
            return str(IPv4Address(plain))
    except ValueError as error:  # UnicodeError is one
        raise InvalidMessage(f"no host to fetch from: {host[:80]!a}") from error
    return plain


def refusal(address: str) -> str:
    """Why nothing is fetched from this IP address; "" where it is public. What is no address is refused."""
    try:
        ip = ip_address(address)
    except ValueError:
        return "not an IP address"
    for network, what in _REFUSED_4 if isinstance(ip, IPv4Address) else _REFUSED_6:
        if ip in network:
            return what
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            return "with a zone"
        if ip not in _GLOBAL_6:
            return "not global"
        if (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
            return "ISATAP"
    return ""
