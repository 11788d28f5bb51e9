"""The health check answers whoever asks, in whatever way, and answers for nothing else."""

import pytest
from django.test import Client


@pytest.mark.parametrize("host", ["testserver", "10.0.0.7:8000", "[::1]", "bad host"])
def test_it_answers_by_any_name_and_without_https(settings, host):
    settings.SECURE_SSL_REDIRECT = True
    answer = Client(headers={"host": host}).get("/healthz")
    assert (answer.status_code, answer.content) == (200, b"ok\n")


def test_it_keeps_the_checks_of_every_other_address(settings):
    assert Client(headers={"host": "elsewhere.example"}).get("/admin/").status_code == 400
    settings.SECURE_SSL_REDIRECT = True
    assert Client().get("/healthz/").status_code == 301
