"""The map of Punctual's one app. A module imports only from its own room and the rooms above it.

    rules/        what should happen? (pure: no Django, no clock)
    cache/        what is made once: for a process, a machine, or all of them?
    zones         which rules of the world's time zones apply?
    secrets       how do secrets get into jobs, and stay out of texts?
    logs          what does a log line look like?
    http          how does a job call an address that a user typed?
    tracing       which spans does OpenTelemetry get?
    models/       what is kept?
    mail/         where may mail go, and does the server take it?
    messages/     what is Celery given?
    schedules/    what does a schedule mean, and what may be done to it?
    ledger/       how does a run begin and end?
    monitoring/   is all well, and why not?
    alerts/       who is told that something is wrong, and how?
    worker/       what happens while a run executes?
    beat/         what does a tick do?
    deployment    which doors do the settings leave open?
    checks        do the settings suit Punctual?
    local/        how does all of it run on one machine?
    toolkit/      what may a job use?
    testing       how are jobs tested?
The doors, which parse, call one function and render:
    tasks/        which jobs can people schedule without writing code?
    admin/        what do people see and do in Django's admin?
    web/          what does the site serve besides the admin?
    management/   what can be done in a shell?

Each room's docstring opens with its question. `apps` connects the receivers. Migrations import nothing from here.
"""
