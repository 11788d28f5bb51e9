"""What does a schedule mean, and what may be done to it?

`calendar` computes when it is due next, `acts` enables, pauses and skips, `entries` installs CELERY_BEAT_SCHEDULE.
"""
