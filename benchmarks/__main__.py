"""`python -m benchmarks [--quick] [--only NAME] [--rounds N]`."""

import argparse

from benchmarks.ground import ground

MEASUREMENTS = ("burst", "queries", "idle", "edit")


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description="Beat beside django-celery-beat's own scheduler.")
    parser.add_argument("--quick", action="store_true", help="few schedules, one round: a look, not a measurement")
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="may be given several times")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    if rounds < 1:
        parser.error("--rounds must be 1 or more")
    with ground() as place:
        from benchmarks import beat  # late: it knows models, for which the environment must stand

        measurements = arguments.only or MEASUREMENTS
        beat.Bench(place, beat.QUICK if arguments.quick else beat.FULL).run(measurements, rounds)


main()
