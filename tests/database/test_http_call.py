"""`jobs.http_call`, called as a plain function against a real web server on loopback, which plays this site."""

from typing import Any

import pytest

from jobs.rules.errors import Invalid
from jobs.secrets import UnknownNameError
from jobs.tasks.http_call import http_call
from jobs.toolkit import http
from tests.web import Web


def test_it_succeeds_when_the_address_answers_as_expected(web: Web) -> None:
    answer = http_call("/livez")
    assert (answer["status"], answer["bytes"]) == (200, 3)
    assert http_call("/none", expected_status=404)["status"] == 404
    http_call("/livez", method="POST", body="käse")
    assert web.asked == ["GET /livez", "GET /none", "POST /livez"]
    assert web.bodies[-1] == "käse".encode()


def test_it_fails_with_both_statuses_when_the_status_is_another(web: Web) -> None:
    with pytest.raises(http.UnexpectedStatus, match="/livez answered 200 instead of 204"):
        http_call("/livez", expected_status=204)


def test_it_fails_when_the_response_lacks_the_expected_text(web: Web) -> None:
    assert http_call("/livez", expected_text="ok")["status"] == 200
    with pytest.raises(http.UnexpectedText, match="/livez answered without the text 'fine'"):
        http_call("/livez", expected_text="fine")


def test_it_accepts_a_server_error_when_it_is_expected(web: Web) -> None:
    web.status = 503
    assert http_call("/livez", expected_status=503)["status"] == 503
    with pytest.raises(http.UnexpectedStatus, match="answered 503 instead of 200"):
        http_call("/livez")


def test_it_fails_when_the_response_is_larger_than_allowed(web: Web) -> None:
    with pytest.raises(http.TooLarge):
        http_call("/livez", largest_answer=2)


def test_it_puts_secrets_into_headers_and_body_and_nowhere_else(
    web: Web, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.JOB_SECRETS = {"BILLING": "canary-7f3a"}
    settings.SECRET_HOSTS = {"BILLING": [web.address], "TYPED": [web.address]}
    http_call("/livez", "POST", {"Authorization": "Bearer secret:BILLING"}, '{"k": "secret:BILLING"}')
    assert web.headers[0]["authorization"] == "Bearer canary-7f3a"
    assert web.bodies == [b'{"k": "canary-7f3a"}']
    assert web.asked == ["POST /livez"]
    assert "canary" not in caplog.text
    with pytest.raises(Invalid, match="No secret is named BILING: set JOB_SECRET_BILING for the workers"):
        http_call("/livez", headers={"Authorization": "secret:BILING"})
    with pytest.raises(UnknownNameError, match="No secret is named TYPED: set JOB_SECRET_TYPED for the workers"):
        http_call("/livez", headers={"Authorization": "secret:TYPED"})


def test_it_calls_nothing_when_the_address_is_private(web: Web) -> None:
    with pytest.raises(http.Refused, match="private address"):
        http_call(f"http://localhost:{web.server_address[1]}/livez")
    assert web.asked == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"url": "/?secret:KEY"}, "put secrets into values of headers or into the body"),
        ({"headers": {"secret:KEY": "a"}}, "put secrets into values of headers or into the body"),
        ({"expected_text": "secret:KEY"}, "put secrets into values of headers or into the body"),
        ({"url": 5}, "url\n  Input should be a valid string"),
        ({"url": ""}, "https://host/path"),
        ({"url": "example.org"}, "https://host/path"),
        ({"method": "get"}, "method\n  Input should be 'GET', 'HEAD'"),
        ({"method": "CONNECT"}, "Input should be 'GET', 'HEAD'"),
        ({"method": None}, "Input should be 'GET', 'HEAD'"),
        ({"method": ["GET"]}, "Input should be 'GET', 'HEAD'"),
        ({"expected_status": "many"}, "expected_status\n  Input should be a valid integer"),
        ({"expected_status": 199}, "greater than or equal to 200"),
        ({"expected_status": 600}, "less than or equal to 599"),
        ({"expected_status": 302}, "redirects are followed"),
        ({"headers": {"a\n": "b"}}, "characters that HTTP does not allow"),
        ({"headers": ["a"]}, "headers\n  Input should be a valid dictionary"),
        ({"deadline": 0}, "greater than 0"),
        ({"deadline": float("nan")}, "less than or equal to 3600"),
        ({"retries": 11}, "less than or equal to 10"),
    ],
)
def test_it_says_what_is_wrong_when_an_argument_is_bad(web: Web, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ValueError, http.FetchError), match=sentence):
        http_call(**{"url": "/livez", **arguments})
    assert web.asked == []


def test_it_sets_the_length_of_the_body_itself(web: Web) -> None:
    http_call("/livez", "POST", {"Content-Length": "5", "Transfer-Encoding": "chunked"}, "whole")
    assert web.bodies == [b"whole"]
    http_call("/livez", "GET", {"Content-Length": "5"})
    assert web.bodies[1:] == [b""]
