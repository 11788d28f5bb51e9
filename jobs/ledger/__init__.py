"""How does a run begin and end?

`requests` and `backfills` create runs, `windows` finds their data windows, `outbox` sends them, `outcomes` ends them.
"""
