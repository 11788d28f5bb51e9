"""What is made once: for a process, a machine, or all of them?

Resources stay in memory, mapped ones in a file, cached values in Redis.
"""
