"""The API refuses requests with problem documents, knows its senders, and describes itself to staff."""

import json
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.test import Client

pytestmark = pytest.mark.django_db(transaction=True)


def problem(answer, status):
    """The problem document of an answer, checked for its form."""
    assert answer.status_code == status, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    found = json.loads(answer.content)
    assert found["status"] == status
    assert found["detail"].strip()
    assert found["title"]
    return found


@pytest.fixture
def browser():
    """A client with the session of a superuser; like a browser, it knows no CSRF token by itself."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("ada"))
    return client


def test_it_answers_problems(browser):
    anonymous = Client(enforce_csrf_checks=True)
    assert "Authorization" in problem(anonymous.get(f"/api/runs/{uuid4()}"), 401)["detail"]
    assert "Bearer" in anonymous.get(f"/api/runs/{uuid4()}")["WWW-Authenticate"]
    problem(anonymous.get("/api/nothing"), 404)
    problem(browser.get(f"/api/runs/{uuid4()}"), 404)
    assert "X-CSRFToken" in problem(browser.delete(f"/api/runs/{uuid4()}"), 403)["detail"]
    assert "uuid" in problem(browser.get("/api/runs/x"), 422)["errors"][0]["detail"].lower()
    assert problem(browser.get(f"/api/runs/{uuid4()}?wat=1"), 422)["errors"][0]["place"] == "query/wat"
    assert browser.get("/api/openapi.json").json()["paths"]
    assert browser.get("/api/docs").status_code == 200
