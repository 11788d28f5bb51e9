"""Who is told that something is wrong, and how? It tells of the health that `monitoring` finds, and delays no run."""
