"""An entry of SECRET_HOSTS_NAME covers every spelling of its own origin and none of another one."""

import httpx
import pytest

from jobs.rules.origins import Origin, covers, parse


@pytest.mark.parametrize(
    ("entry", "addresses"),
    [
        (
            "api.example.org",
            ["https://api.example.org", "https://API.example.org:443/x?y#z", "https://api.example.org./"],
        ),
        ("API.Example.Org.", ["https://api.example.org/"]),
        ("*.example.org", ["https://a.example.org", "https://a.b.example.org/"]),
        ("api.example.org:8443", ["https://api.example.org:8443/"]),
        ("http://api.example.org", ["http://api.example.org/", "http://api.example.org:80/"]),
        ("http://*.example.org:8080", ["http://a.example.org:8080/"]),
        ("bücher.example", ["https://bücher.example/", "https://BÜCHER.example/", "https://xn--bcher-kva.example/"]),
        ("*.bücher.example", ["https://www.xn--bcher-kva.example/"]),
        ("[2001:db8::1]", ["https://[2001:db8::1]/", "https://[2001:0DB8:0:0::0001]/"]),
        ("10.0.0.1:8443", ["https://10.0.0.1:8443/"]),
        ("*", ["https://anything.example/", "http://127.0.0.1:1/"]),
    ],
)
def test_it_covers_every_spelling_of_an_allowed_origin(entry, addresses):
    for address in addresses:
        assert covers([entry], Origin.of(httpx.URL(address))), address


@pytest.mark.parametrize(
    ("entry", "address"),
    [
        ("api.example.org", "http://api.example.org/"),  # unencrypted
        ("api.example.org", "https://api.example.org:8443/"),
        ("api.example.org", "https://evil.example/api.example.org"),
        ("api.example.org", "https://evil.example/?api.example.org"),
        ("api.example.org", "https://evil.example#@api.example.org"),
        ("api.example.org", "https://api.example.org.evil.example/"),
        ("api.example.org", "https://evilapi.example.org/"),
        ("api.example.org", "https://x.api.example.org/"),
        ("api.example.org", "https://аpi.example.org/"),
        ("*.example.org", "https://example.org/"),
        ("*.example.org", "https://evilexample.org/"),
        ("*.example.org", "https://a.example.org.evil.example/"),
        ("*.example.org", "http://a.example.org/"),
        ("http://api.example.org", "https://api.example.org/"),
        ("10.0.0.1", "https://0x0a000001/"),
        ("10.0.0.1", "https://[::ffff:10.0.0.1]/"),
        ("[2001:db8::1]", "https://[2001:db8::2]/"),
    ],
)
def test_it_covers_no_other_origin(entry, address):
    assert not covers([entry], Origin.of(httpx.URL(address)))


@pytest.mark.parametrize(
    "address", ["https://api.example.org@evil.example/", "ftp://api.example.org/", "/path", "https:///x"]
)
def test_it_knows_no_origin_of_an_address_that_no_job_calls(address):
    with pytest.raises((ValueError, httpx.InvalidURL)):
        Origin.of(httpx.URL(address))


BAD = ["", "https://", "api.example.org/path", "a b", "*.*.org", "a*.org", "ftp://host", "user@host", "host:port"]


@pytest.mark.parametrize("entry", [*BAD, "host:70000", "::1", "*.", "//host", "host?x", "host#x"])
def test_it_refuses_an_entry_that_is_no_origin(entry):
    with pytest.raises(ValueError, match=r"\S"):
        parse(entry)
