"""Beats and workers tell of themselves: the living are listed, who stops says goodbye, who is killed fades."""

from datetime import timedelta

import pytest

from jobs.models import Node, database_now

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_lists_who_lives_and_knows_who_said_goodbye(processes, eventually):
    worker = processes.start_worker("--queues=celery,slow", "--concurrency=3", env={"CODE_VERSION": "abc123"})
    beat = processes.start_beat()
    eventually(lambda: Node.objects.live().count() == 2)
    node = Node.objects.get(kind=Node.Kind.WORKER)
    assert (node.name, node.queues, node.concurrency) == ("worker0@localhost", "celery, slow", "prefork 3")
    assert (node.version, node.pid) == ("abc123", worker.pid)
    assert Node.objects.get(kind=Node.Kind.BEAT).pid == beat.pid
    worker.stop()
    beat.stop()
    assert Node.objects.filter(stopped_at=None).count() == 0


def test_it_lets_who_was_killed_fade_and_come_back(processes, eventually):
    first = processes.start_worker("--pool=solo")
    eventually(lambda: Node.objects.live().exists())
    first.kill()
    assert Node.objects.get().stopped_at is None
    Node.objects.update(seen_at=database_now() - timedelta(minutes=2))
    assert not Node.objects.live().exists()
    second = processes.start_worker("--pool=solo", "--hostname=worker0@localhost")
    eventually(lambda: Node.objects.live().exists())
    assert Node.objects.get().pid == second.pid
