"""A node that stops is marked as stopped, whatever its last query left behind."""

import pytest
from django.db import connection

from jobs.models import Node
from jobs.monitoring import nodes

pytestmark = pytest.mark.django_db(transaction=True)


def test_it_marks_a_stopped_node_though_its_signal_broke_the_connection():
    nodes.heartbeat("beat@here", kind=Node.Kind.BEAT)
    connection.connection.close()  # as a query leaves it that a signal has interrupted
    nodes.mark_stopped("beat@here")
    assert Node.objects.get().stopped_at is not None
