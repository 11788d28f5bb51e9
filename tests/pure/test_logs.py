"""What a run logs is kept without the secrets in it."""

import logging

import pytest

from jobs.logs import RunHandler, mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("password=hunter2 and more", "password=*** and more"),
        ("{'password': 'hunter2', 'user': 'ada'}", "{'password': ***, 'user': 'ada'}"),
        ('{"api_key": "a b c", "n": 1}', '{"api_key": ***, "n": 1}'),
        ("X-Auth-Token: abc123", "X-Auth-Token: ***"),
        ("db_password: s3cr3t,", "db_password: ***,"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("'Authorization': 'Basic YWRhOmFkYQ=='", "'Authorization': 'Basic ***'"),
        ("sent with bearer abcdefghijkl", "sent with bearer ***"),
        ("postgres://ada:hunter2@db:5432/x", "postgres://ada:***@db:5432/x"),
        ("redis://:hunter2@cache/0", "redis://:***@cache/0"),
        ("postgres://u:p@ss@h/x", "postgres://u:***@h/x"),
        ("sessionid=abc", "sessionid=***"),
        ("https://example.com/path?token=abc&x=1", "https://example.com/path?token=***&x=1"),
        ("12:30 backed up 7 tables for token bearers", "12:30 backed up 7 tables for token bearers"),
        ("https://example.com:8000/@me", "https://example.com:8000/@me"),
        ("", ""),
    ],
)
def test_it_masks_what_stands_beside_a_word_for_a_secret(text, masked):
    assert mask(text) == masked


def test_it_masks_long_texts_in_no_time():
    for text in ("password" * 9_000 + "=" * 9_000 + "x://" * 9_000, "a" * 90_000, "a-" * 90_000, "://:" * 9_000):
        assert len(mask(text)) <= len(text)


def test_it_keeps_nothing_of_what_is_logged_outside_of_runs():
    handler = RunHandler()
    handler.handle(logging.LogRecord("shop", logging.INFO, "", 0, "hello", (), None))
    handler.handle(logging.LogRecord("celery.worker", logging.INFO, "", 0, "hello", (), None))
