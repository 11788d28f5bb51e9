"""Which libraries read untrusted files? Those of the modules here, which `jobs.toolkit.confined` runs in processes.

Their one rule: a module has a function `read(content: bytes, *arguments: str) -> bytes` and an exception `Refused`,
whose message is a sentence. Any other exception counts as a crash. It imports nothing of Punctual.
"""
