"""`python -m benchmarks [--quick] [--only NAME] [--rounds N]`."""

import argparse
import os
import platform
from collections.abc import Sequence

from benchmarks.figures import Figures
from benchmarks.ground import Ground, ground

BEAT, WORKER = ("burst", "queries", "idle", "edit"), ("drain", "latency", "results", "statements")
RESOURCES, FAN_OUT, RETENTION, CHANGES = ("resources",), ("fan_out",), ("retention",), ("shared", "outage")
REQUESTS = ("requests", "clients", "cut_off", "hooks")
METRICS = ("metrics",)
ALL = BEAT + WORKER + RESOURCES + FAN_OUT + RETENTION + CHANGES + REQUESTS + METRICS


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description="Compares Punctual with the stock parts.")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes and one round: a smoke test, not a measurement"
    )
    parser.add_argument("--only", choices=ALL, action="append", help="run only this benchmark; may be repeated")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each benchmark (default: 3)")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    with ground() as place:
        measure(place, arguments.only or ALL, 1 if arguments.quick else arguments.rounds, arguments.quick)


def measure(place: Ground, names: Sequence[str], rounds: int, quick: bool) -> None:
    from django.db import connection  # late, like the next imports: the environment must be set

    from benchmarks import beat, changes, fan_out, metrics, requests, resources, retention, worker

    server = connection.cursor().connection.info.server_version // 10_000
    python, cores = platform.python_version(), os.cpu_count()
    print(f"PostgreSQL {server}, Python {python}, {cores} cores; medians of {rounds} [lowest to highest]", flush=True)
    figures = Figures()
    for part, module, offered in (
        (beat.Beat, beat, BEAT),
        (worker.Worker, worker, WORKER),
        (resources.Resources, resources, RESOURCES),
        (fan_out.FanOut, fan_out, FAN_OUT),
        (retention.Retention, retention, RETENTION),
        (changes.Changes, changes, CHANGES),
        (requests.Requests, requests, REQUESTS),
        (metrics.Metrics, metrics, METRICS),
    ):
        if chosen := [name for name in offered if name in names]:
            bench = part(place, module.QUICK if quick else module.FULL, figures)
            for name in chosen:
                for _ in range(rounds):
                    getattr(bench, name)()
                figures.print()


main()
