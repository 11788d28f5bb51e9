"""Does `manage.py check` refuse settings that would make the ledger wrong?"""

import pytest
from celery import current_app
from django.core.management import call_command
from django.core.management.base import SystemCheckError


def test_it_refuses_messages_without_headers(monkeypatch):
    call_command("check", "jobs")
    monkeypatch.setitem(current_app.conf, "task_protocol", 1)
    with pytest.raises(SystemCheckError, match=r"jobs\.E002.*\n.*HINT: Remove the setting"):
        call_command("check", "jobs")
