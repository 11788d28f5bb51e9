"""What does a schedule mean, and what may be done to it?

`calendar` computes when it is due next, `recheck` doubts that, and `past` says when it was due. `acts` enables, pauses
and skips. `timings` reads written timings and finds their rows, and `preview` says what one would do. `entries`
installs CELERY_BEAT_SCHEDULE, each entry read by `entry`.
"""
