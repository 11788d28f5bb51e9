"""How does a run begin and end? `requests` and `backfills` create runs, `outbox` sends them, `outcomes` ends them."""
