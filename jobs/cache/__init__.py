"""What is made once: for a process, a machine, or all of them?

Resources stay in a process's memory, mapped resources in a file, cached values in Redis.
"""
