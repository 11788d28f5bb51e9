"""Is all well, and who is told? It reads the ledger and decides nothing about a run."""
