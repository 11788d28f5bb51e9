"""How does a job parse an untrusted file that may attack the parser? In a separate process with few means.

Its one rule: the process has limits of CPU time and memory, and inherits neither settings nor connections. If a file
makes its parser hang, crash or use too much memory, only this process ends, and the run fails with a sentence.

A parser is a module of `jobs.toolkit.parsers`. Limits: the process has this user's rights to files and the network.
Only Linux enforces the memory limit.
"""

import os
import resource
import runpy
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

SECONDS = 10  # of CPU time
MEGABYTES = 700  # of address space, of which Python and its libraries take about 100
LONGEST_ARGUMENT = 10_000  # characters; the kernel has a limit, too
REFUSED, EXHAUSTED = 3, 4  # exit codes: the parser refuses the content with a sentence, or runs out of memory
KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")  # variables that Python needs to start
PARSERS = Path(__file__).parent / "parsers"


class RefusedError(ValueError):
    """The parser refused the content. The message is its sentence."""


class ExhaustedError(ValueError):
    """The parser reached the limit of CPU time or memory."""


class CrashedError(ValueError):
    """The parser failed with an unexpected error. Most likely the content is damaged."""


def parse(parser: str, content: bytes, *arguments: str) -> bytes:
    """The output of the named parser for the content. Raises RefusedError, ExhaustedError, CrashedError."""
    if any("\0" in each or len(each) > LONGEST_ARGUMENT for each in arguments):
        raise RefusedError(
            "The content type, or another argument of the parser, has a NUL character or more than "
            f"{LONGEST_ARGUMENT:,} characters."
        )
    path = str(PARSERS / f"{parser}.py")
    command = [sys.executable, "-P", __file__, str(SECONDS), str(MEGABYTES), path, *arguments]
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    done = subprocess.run(command, input=content, capture_output=True, env=environment, check=False)  # noqa: S603 - our own files
    if done.returncode == REFUSED:
        raise RefusedError(done.stdout.decode())
    if done.returncode in {EXHAUSTED, -signal.SIGXCPU, -signal.SIGKILL}:
        raise ExhaustedError(f"reading it takes more than {SECONDS} s or {MEGABYTES} MB")
    if done.returncode:
        raise CrashedError("it crashes its parser")
    return done.stdout


def _confine(seconds: int, most: int) -> None:
    with suppress(ValueError, OSError):  # macOS has no limit of the address space
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _main(seconds: str, megabytes: str, path: str, *arguments: str) -> None:
    """The main function of the process."""
    _confine(int(seconds), int(megabytes) * 1_000_000)
    parser = runpy.run_path(path)
    try:
        made = parser["read"](sys.stdin.buffer.read(), *arguments)
    except parser["Refused"] as error:
        sys.stdout.buffer.write(str(error).encode(errors="replace"))
        sys.exit(REFUSED)
    except MemoryError:
        sys.exit(EXHAUSTED)
    sys.stdout.buffer.write(made)


if __name__ == "__main__":
    _main(*sys.argv[1:])
