"""Is all well, and why not? It reads the ledger and decides nothing about a run."""
