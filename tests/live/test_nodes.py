"""Beats and workers send heartbeats: live ones are listed, stopped ones are marked, killed ones become silent."""

from datetime import timedelta

import pytest

from jobs.models import Node, database_now

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_lists_live_nodes_and_marks_stopped_ones(processes, eventually):
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


def test_it_shows_a_killed_node_as_silent_until_it_is_back(processes, eventually):
    first = processes.start_worker("--pool=solo")
    eventually(lambda: Node.objects.live().exists())
    first.kill()
    assert Node.objects.get().stopped_at is None
    Node.objects.update(seen_at=database_now() - timedelta(minutes=2))
    assert not Node.objects.live().exists()
    second = processes.start_worker("--pool=solo", "--hostname=worker0@localhost")
    eventually(lambda: Node.objects.live().exists())
    assert Node.objects.get().pid == second.pid
