"""What Celery prints about its configuration holds no secret: people paste it into bug reports."""

import subprocess
from contextlib import closing

import pytest
from redis import Redis

from jobs.local import embedded
from tests.live.conftest import CELERY
from tests.servers import ROOT
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

CANARY = "canary-1234"
PRINTING = ("report", "inspect report", "inspect conf", "inspect stats")


@pytest.fixture
def secrets(mortal_broker) -> dict[str, str]:
    """An environment with the canary in every place for a secret, and a broker that demands it."""
    with closing(Redis.from_url(mortal_broker.url)) as client:
        client.config_set("requirepass", CANARY)
    address = mortal_broker.url.replace("unix://", f"unix://:{CANARY}@")
    return {
        "BROKER_URL": embedded.broker_url(address),
        "EMAIL_URL": f"smtp://ada:{CANARY}@localhost:25",
        "JOB_SECRET_BILLING": CANARY,
        "REDIS_URL": address,
        "SECRET_KEY": CANARY,
    }


def test_it_prints_no_secret_of_the_settings(processes, secrets):
    worker = processes.start_worker(env=secrets)
    for command in PRINTING:
        done = subprocess.run(
            [*CELERY, *command.split()],
            cwd=ROOT,
            env={**processes.environment, **secrets},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        assert "redis" in done.stdout, command
        assert "canary" not in done.stdout + done.stderr, command
    assert "canary" not in worker.log
