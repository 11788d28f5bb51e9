"""The health check answers under every host name and scheme, and changes no other address."""

import pytest
from django.test import Client


@pytest.mark.parametrize("host", ["testserver", "10.0.0.7:8000", "[::1]", "bad host"])
def test_it_answers_for_any_host_name_and_without_https(settings, host):
    settings.SECURE_SSL_REDIRECT = True
    answer = Client(headers={"host": host}).get("/healthz")
    assert (answer.status_code, answer.content) == (200, b"ok\n")


def test_it_keeps_django_s_checks_for_other_addresses(settings):
    assert Client(headers={"host": "elsewhere.example"}).get("/admin/").status_code == 400
    settings.SECURE_SSL_REDIRECT = True
    assert Client().get("/healthz/").status_code == 301
