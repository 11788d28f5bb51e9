"""The parts of sending mail that need no server: the pace, addresses and subjects."""

import pytest

from jobs.toolkit import mail


class Clock:
    """A clock that advances only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


def moments(pace: mail.Pace, clock: Clock, number: int) -> list[float]:
    """The moments of `number` events, each as early as the pace allows."""
    found = []
    for _ in range(number):
        pace.wait()
        found.append(clock.now - 1000)
    return found


def test_it_spaces_messages_evenly():
    clock = Clock()
    assert moments(mail.Pace(30, None, clock, clock.sleep), clock, 4) == [0, 2, 4, 6]


def test_it_never_waits_without_a_pace():
    clock = Clock()
    assert moments(mail.Pace(None, 0.0, clock, clock.sleep), clock, 3) == [0, 0, 0]


@pytest.mark.parametrize(("since_last", "first"), [(0.0, 6), (4.0, 2), (60.0, 0)])
def test_it_keeps_the_distance_to_the_last_message_of_an_earlier_attempt(since_last, first):
    clock = Clock()
    assert moments(mail.Pace(10, since_last, clock, clock.sleep), clock, 2) == [first, first + 6]


def test_it_does_not_hurry_after_a_delay():
    clock = Clock()
    pace = mail.Pace(60, None, clock, clock.sleep)
    pace.wait()
    clock.now += 100
    assert moments(pace, clock, 2) == [100, 101]


def test_it_sleeps_in_short_naps_so_that_it_can_be_cancelled():
    clock = Clock()
    moments(mail.Pace(1, None, clock, clock.sleep), clock, 2)
    assert sum(clock.naps) == 60
    assert max(clock.naps) <= 1


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("Ada@Example.ORG", "Ada@example.org"),
        (" ada@example.org\n", "ada@example.org"),
        ("a@b@Example.org", "a@b@example.org"),
        ("invalid", "invalid"),
        ("nul\0@example.org", "nul\\0@example.org"),
    ],
)
def test_it_writes_an_address_in_its_canonical_form(address, plain):
    assert mail.canonical(address) == plain


@pytest.mark.parametrize(
    "address",
    [
        "",
        "invalid",
        "@example.org",
        "a@",
        "a@b@example.org",
        "a b@example.org",
        "a@example.org\nBcc: b@example.org",
        "a@example.org, b@example.org",
        "Ada <ada@example.org>",
        "a@-example.org",
        f"{'a' * 320}@example.org",
        f"a@{'x.' * 300}org",
        "a@x\0.org",
    ],
)
def test_it_refuses_an_invalid_address(address):
    with pytest.raises(ValueError, match="not a mail address"):
        mail.deliverable(address)


@pytest.mark.parametrize("domain", ["bücher.example.org", "bu\u0308cher.example.org", "BÜCHER.example.org"])
def test_it_writes_every_spelling_of_a_domain_in_the_same_punycode(domain):
    assert mail.deliverable(f"ada@{domain}") == "ada@xn--bcher-kva.example.org"


@pytest.mark.parametrize("name", ["=?utf-8?q?ada?=", '"=?utf-8?q?a=22?="', '"\x01"', '"a b"'])
def test_it_refuses_an_address_that_may_become_another_one(name):
    with pytest.raises(ValueError, match=r"quoted or encoded|not a mail address"):
        mail.deliverable(f"{name}@example.org")


@pytest.mark.parametrize(
    "subject", ["a\nBcc: b@example.org", "a\r\n", "a\rb", "a\u2028b", "a\x0bb", "a\0", "a\x7f", " ", ""]
)
def test_it_refuses_a_subject_that_is_not_one_line(subject):
    with pytest.raises(ValueError, match="one line"):
        mail.Message(subject, "text")


@pytest.mark.parametrize(("address", "shown"), [("ada@example.org", "a…@example.org"), ("secret", "…"), ("", "…")])
def test_it_shows_no_whole_address(address, shown):
    assert mail.masked(address) == shown


def test_it_identifies_a_message_by_its_name_or_its_content():
    first = mail.Message("s", "t")
    assert first.digest == mail.Message("s", "t").digest
    others = [
        mail.Message("st", ""),
        mail.Message("s", "t", "h"),
        mail.Message("s", "t", name="n"),
        mail.Message("t", "s"),
    ]
    assert len({first.digest, *(each.digest for each in others)}) == 5
    assert mail.Message("s", "t", name="n").digest == mail.Message("x", "y", name="n").digest


@pytest.mark.parametrize("domain", ["example.org", "EXAMPLE.org", "a.b.example.net", "www.bücher.example"])
def test_it_takes_addresses_in_the_allowed_domains(settings, domain):
    settings.MAIL_DOMAINS = ["example.org", "*.example.net", "*.xn--bcher-kva.example"]
    assert mail.deliverable(f"ada@{domain}")


@pytest.mark.parametrize(
    "domain", ["evil.example", "a.example.org", "example.net", "evilexample.org", "example.org.evil.io"]
)
def test_it_refuses_addresses_in_other_domains(settings, domain):
    settings.MAIL_DOMAINS = ["example.org", "*.example.net"]
    with pytest.raises(ValueError, match=rf"no mail to {domain}: MAIL_DOMAINS allows example\.org, \*\.example\.net"):
        mail.deliverable(f"ada@{domain}")


@pytest.mark.parametrize("address", ["ada%evil.net@example.org", "evil.net!ada@example.org"])
def test_it_refuses_addresses_that_name_another_domain_for_a_relay(settings, address):
    assert mail.deliverable(address)
    settings.MAIL_DOMAINS = ["example.org"]
    with pytest.raises(ValueError, match="names another one before the @"):
        mail.deliverable(address)
