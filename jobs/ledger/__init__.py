"""How does a run begin and end? `requests` and `backfills` write runs down, `outcomes` is where each of them ends."""
