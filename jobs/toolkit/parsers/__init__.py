"""Which code parses untrusted files? One module for each kind of file; `jobs.toolkit.confined` runs it in a process.

Their one rule: a module has a function `read(content: bytes, *arguments: str) -> bytes` and an exception `Refused`,
whose message is a sentence. Any other exception counts as a crash. A module imports nothing of Punctual.
"""
