"""Storms: real processes under faults, and a ledger that must be right afterwards. `make chaos` runs them all."""
