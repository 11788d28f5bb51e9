"""`manage.py probe live|ready|beat|worker`: is this container well? The exit status says so; for health checks."""

import http.client
from argparse import ArgumentParser

from django.core.management.base import CommandError

from jobs.management.terminal import ShellCommand, brief
from jobs.monitoring import probes

PATIENCE = 5.0  # seconds for the web process


class Command(ShellCommand):
    help = "Says whether a part of Punctual works: exit status 0 if it does, 1 if not."

    def add_arguments(self, parser: ArgumentParser) -> None:
        acts = parser.add_subparsers(dest="act", required=True, metavar="PART")
        live = self.act(acts, "live", self.live, "The web process of this machine answers.", json=False)
        live.add_argument("--port", type=int, default=8000, help="where it listens (default: 8000)")
        ready = self.act(acts, "ready", self.ready, "The checks of /readyz pass, from this process.", json=False)
        ready.add_argument("--exclude", action="append", default=[], metavar="CHECK", help="leave a check out")
        self.act(acts, "beat", self.beat, "The beat of this machine ticks: it sends heartbeats.", json=False)
        worker = self.act(acts, "worker", self.worker, "The worker of this machine sends heartbeats.", json=False)
        worker.add_argument("--node", default="", help="its name, if --hostname gave it one without the machine's")

    def live(self, *, port: int) -> None:
        """Like a load balancer's probe of /livez."""
        web = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            web.request("GET", "/livez")
            status = web.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(f"No web process answers on port {port} ({brief(error)}).") from error
        finally:
            web.close()
        if status != 200:
            raise CommandError(f"The process on port {port} answered {status} instead of 200: is it Punctual's?")
        self.terminal.say("ok")

    def ready(self, *, exclude: list[str]) -> None:
        """The same checks as the web process has."""
        found = probes.not_ready(exclude)
        for name, why in found.items():
            self.terminal.say(f"{name} failed: {why}" if why else f"{name} ok")
        if failed := [name for name, why in found.items() if why]:
            raise CommandError(f"Not ready: {', '.join(failed)}.")

    def beat(self) -> None:
        self._node(probes.why_silent(probes.BEAT))

    def worker(self, *, node: str) -> None:
        self._node(probes.why_silent(probes.WORKER, node))

    def _node(self, why: str) -> None:
        if why:
            raise CommandError(f"Not alive: {why}.")
        self.terminal.say("ok")
