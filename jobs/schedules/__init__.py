"""What does a schedule mean, and what may be done to it?

`calendar` computes when it is due next, `recheck` doubts that, and `past` says when it was due. `acts` enables, pauses
and skips. `entries` installs CELERY_BEAT_SCHEDULE, each entry read by `entry`.
"""
