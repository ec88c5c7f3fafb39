"""Nothing but the public internet is fetched from, in whichever notation somebody asks for something else."""

from __future__ import annotations

import string
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.addresses import Target, refusal, target
from shared.errors import InvalidMessage

INSIDE = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
]


private = st.sampled_from([IPv4Network(network) for network in INSIDE]).flatmap(
    lambda network: st.integers(int(network[0]), int(network[-1])).map(IPv4Address)
)
any_v4 = st.integers(0, 2**32 - 1).map(IPv4Address)


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "172.15.255.255", "172.32.0.0", "100.63.0.1", "2606:4700:4700::1111", "2a00::1"],
)
def test_public_addresses_are_fetched_from(address: str) -> None:
    assert refusal(address) == ""


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("169.254.169.254", "metadata"),  # AWS, GCP, Azure, DigitalOcean
        ("100.100.100.200", "shared"),  # Alibaba
        ("192.0.0.192", "metadata"),  # Oracle
        ("168.63.129.16", "metadata"),  # Azure
        ("fd00:ec2::254", "metadata"),  # AWS
        ("fd20:ce::254", "metadata"),  # GCP
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::ffff:8.8.8.8", "IPv4-mapped"),
        ("::ffff:0:8.8.8.8", "IPv4-translated"),
        ("::8.8.8.8", "IPv4-compatible"),
        ("64:ff9b::808:808", "NAT64"),
        ("64:ff9b:1::808:808", "NAT64"),
        ("2001::808:808", "Teredo"),
        ("2002:808:808::1", "6to4"),
        ("2a00::5efe:808:808", "ISATAP"),
        ("2a00::200:5efe:808:808", "ISATAP"),
        ("fe80::1", "link-local"),
        ("2a00::1%eth0", "zone"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("4000::1", "not global"),
        ("192.0.2.1", "documentation"),
        ("198.51.100.1", "documentation"),
        ("203.0.113.1", "documentation"),
        ("192.31.196.1", "AS112"),
        ("192.175.48.1", "AS112"),
        ("192.52.193.1", "AMT"),
        ("192.88.99.1", "6to4"),
        ("198.19.255.255", "benchmarking"),
        ("100::1", "discard"),
        ("2001:100::1", "protocol assignments"),
        ("2001:db8::1", "documentation"),
        ("3fff::1", "documentation"),
        ("2620:4f:8000::1", "AS112"),
        ("5f00::1", "segment routing"),
        ("localhost", "not an IP address"),
        ("", "not an IP address"),
    ],
)
def test_what_is_ours_or_hides_something_is_not(address: str, why: str) -> None:
    assert why in refusal(address)


def test_the_longest_address_there_may_be() -> None:
    assert target("http://example.org/".ljust(2048, "a")).path == "/" + "a" * 2029


@given(private)
def test_no_inside_address_is_public(address: IPv4Address) -> None:
    assert refusal(str(address))
    assert not address.is_global or address.is_multicast


@given(any_v4)
def test_what_the_standard_library_calls_private_is_refused(address: IPv4Address) -> None:
    assert refusal(str(address)) or (address.is_global and not address.is_multicast)


@given(
    st.integers(0, 2**128 - 1).map(IPv6Address)
    | st.integers(0, 2**125 - 1).map(lambda n: IPv6Address(n | 1 << 125))
)
def test_what_the_standard_library_calls_private_is_refused_in_ipv6_too(number: int) -> None:
    address = IPv6Address(number)
    assert refusal(str(address)) or (address.is_global and not address.is_multicast)


@given(
    any_v4,
    st.sampled_from(
        [
            "::ffff:0:0/96",
            "::/96",
            "64:ff9b::/96",
            "64:ff9b:1::/96",
            "2002::/16",
            "2001::/32",
            "2a00::5efe:0:0/96",
        ]
    ),
)
def test_an_ipv4_address_inside_an_ipv6_address_is_refused(address: IPv4Address, carrier: str) -> None:
    network = IPv6Network(carrier)
    shift = 80 if carrier == "2002::/16" else 0  # 6to4 has it behind the prefix, the others at the end
    assert refusal(str(IPv6Address(int(network.network_address) | int(address) << shift)))


def notations(address: IPv4Address) -> st.SearchStrategy[str]:
    """Every way inet_aton reads: decimal, octal and hexadecimal numbers, one to four of them."""
    a, b, c, d = address.packed
    numbers = st.sampled_from([[a, b, c, d], [a, b, c << 8 | d], [a, b << 16 | c << 8 | d], [int(address)]])
    written: list[Callable[[int], str]] = [
        str,
        hex,
        lambda n: f"0X{n:X}",
        lambda n: f"0{n:o}",
        lambda n: f"{n:012d}",
    ]
    forms = st.sampled_from(written)

    @st.composite
    def host(draw: st.DrawFn) -> str:
        return ".".join(draw(forms)(number) for number in draw(numbers)) + draw(st.sampled_from(["", "."]))

    return host()


@given(any_v4.flatmap(lambda address: st.tuples(st.just(address), notations(address))), st.booleans())
def test_a_host_in_numbers_is_the_plain_address_or_refused(
    written: tuple[IPv4Address, str], wide: bool
) -> None:
    """Full-width digits and dots, which a resolver makes plain, are made plain before."""
    address, host = written
    if wide:
        host = "".join(chr(ord(letter) + 0xFEE0) if letter.isalnum() else letter for letter in host)
        host = host.replace(".", "\u3002")
    try:
        found = target(f"http://{host}/")
    except InvalidMessage:
        return
    assert found.host == str(address)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "//example.org/a.png",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "gopher://127.0.0.1:6379/_INFO",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "http://",
        "http:///a.png",
        "http://user@example.org/",
        "http://user:password@example.org/",
        "http://example.org:password@127.0.0.1/",
        "http://example.org@127.0.0.1/",
        "http://example.org\\@127.0.0.1/",
        "http://example.org\\a.png",
        "http://example.org\t.evil/",
        "http://example.org/\r\nHost: 127.0.0.1",
        "http://example.org:0/",
        "http://example.org:65536/",
        "http://example.org:http/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://127.0.0.0x1/",
        "http://127.0.0.0x/",
        "http://1.2.3.4.5/",
        "http://[fe80::1%25eth0]/",
        "http://[fe80::1%eth0]/",
        "http://[::1/",
        "http://[]/",
        "http://[127.0.0.1]/",
        "http://[v1.fe80]/",
        "http://exa mple.org/",
        "http://exam%70le.org/",
        "http://.example.org/",
        "http://example..org/",
        "http://" + "a" * 64 + ".org/",
        "http://" + "a." * 127 + "org/",
        "http://example.org/" + "a" * 2048,
    ],
)
def test_what_is_no_plain_web_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidMessage):
        target(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://Example.ORG", Target("http", "example.org", 80, "/")),
        ("HTTPS://example.org./a.png?b=c#d", Target("https", "example.org", 443, "/a.png?b=c")),
        ("https://example.org:8443/a", Target("https", "example.org", 8443, "/a")),
        ("http://127.0.0.1/", Target("http", "127.0.0.1", 80, "/")),  # refused by its address, later
        ("http://[2606:4700::0001]/", Target("http", "2606:4700::1", 80, "/")),
        ("http://bücher.example/ü?ä", Target("http", "xn--bcher-kva.example", 80, "/%C3%BC?%C3%A4")),
        ("http://a_b.example.org/%2e%2E/", Target("http", "a_b.example.org", 80, "/%2e%2E/")),
        ("http://example.org?a", Target("http", "example.org", 80, "/?a")),
    ],
)
def test_a_web_address_is_taken_apart(address: str, expected: Target) -> None:
    assert target(address) == expected


hosts = st.text(string.ascii_letters + string.digits + ".-_:[]@%/\\#?。ｅ①ß\u00ad\u200d", max_size=40)
paths = st.text(max_size=40)


@given(st.sampled_from(["http://", "https://", "HTTP:", "http:/"]), hosts, paths)
def test_nothing_of_an_address_can_leave_the_line_of_a_request(scheme: str, host: str, path: str) -> None:
    try:
        found = target(f"{scheme}{host}/{path}")
    except InvalidMessage:
        return
    assert found.path.isascii()
    assert found.path.isprintable()
    assert " " not in found.path
    assert found.path.startswith("/")
    assert set(found.host) <= set(string.ascii_lowercase + string.digits + ".-_:")
    assert 0 < found.port < 65536
    # What is asked of the host is what another reader of the same address would ask.
    assert urlsplit(f"{found.scheme}://{found.host_port}{found.path}").hostname == found.host
