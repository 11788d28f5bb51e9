"""Punctual's one app: the map of its modules, from the ground up. Imports point upwards in this list, never down.

Pure, without Django:
    occurrences   when is a schedule due?
    policies      what should happen to a due moment, a failed attempt, a lost one?
    resources     how do the jobs of a process share what is expensive to make?
    mapped        how do all processes of a machine share one large table?
    rows          which rows of a source can be loaded, and what is wrong with the others?
Data:
    prepared      executes a statement that Django made before
    models/       the ledger: policies, runs, attempts, steps; the only way a run changes its state
    bulk          writes many rows in one statement
Capabilities:
    caching       what may be remembered for a while, by every process?
    calendar      when is a `PeriodicTask` due next, and has it changed?
    arguments     what does a job take, and do these arguments fit?
    message       what does it ask Celery to run?
    claim         writes due moments into the ledger, each once
    envelope      what does Celery make of a run's message?
    pulse         keeps the runs of this process alive
    logs          keeps what a run logs
    files         what do jobs keep as files, and who may fetch them?
    ask           writes down runs that somebody asks for: by hand, as a backfill
    release       when may a run start that waits for another one to end?
    dispatch      hands runs to Celery
    entries       installs the schedules of CELERY_BEAT_SCHEDULE
    steps         what does a run wait for that set off other tasks?
    finish        how does an attempt of a run end?
    retention     what may the ledger forget, and when?
    rescue        what becomes of runs that nobody will finish?
    results       what comes back from a task?
    statistics    how are the runs doing, in a few figures?
    nodes         which beats and workers are there?
    sharing       what does a worker do about its resources?
    current       what a task can ask and tell while it executes
    http          fetches an address, and never one it must not
    secrets       puts the values of secrets in the place of their names
    images        may this picture be decoded, and how does it look smaller?
    backup        could we get our data back from this copy?
    smtp          did the mail server take this message?
    mail          has this message gone out, and to whom not?
    queries       what may people ask the database?
    documents     how does a table become a file that is safe to open?
    demo          the demonstration schedules
    supervisor    keeps processes alive that belong together, and ends them together
What runs in beat and in workers:
    base          what makes a task a job: start guard and finish
    consumer      what must not end a worker, or leave it deaf?
    scheduler     the beat
    tasks/        the ready-made jobs
    up            all of Punctual in one terminal
Doors:
    admin/        schedules, runs, files and resources, for people
    views         links to files; statistics, as JSON
    management/   commands
"""
