"""How is an untrusted file read by a parser that it may attack? In a process of its own, which has little to lose.

Its one rule: the process has a limit of CPU time and one of memory, and inherits neither settings nor connections. So a
file that makes its parser hang, swell or crash costs no more than that, and its run gets a sentence.

A parser is a module of `jobs.toolkit.parsers`. Limits: the process has the rights of this user to files and network.
Only Linux enforces the limit of memory.
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
REFUSED, EXHAUSTED = 3, 4  # exit codes: the parser gives a sentence, or finds no more memory
KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")  # variables that Python needs to start
PARSERS = Path(__file__).parent / "parsers"


class RefusedError(ValueError):
    """The parser refused the content. The message is its sentence."""


class ExhaustedError(ValueError):
    """The parser took too long or too much memory."""


class CrashedError(ValueError):
    """The parser failed as its authors did not foresee. Most likely the content is damaged."""


def parse(parser: str, content: bytes, *arguments: str) -> bytes:
    """What the parser of that name makes of the content. Raises RefusedError, ExhaustedError, CrashedError."""
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
    """The program of the process."""
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
