"""Storms: real processes under faults, after which the ledger must be right. `make chaos` runs them all."""
