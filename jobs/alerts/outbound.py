"""How does a message leave, so that its sender always goes on? Within one deadline, and with one sentence if it fails.

Its one rule: no call outlasts its deadline, whatever the other side does, and no error holds a secret. HTTP has the
deadline of `jobs.http`. Everything else runs in a thread, which is left alone at the deadline.
Limits: a thread that is left alone ends when the other side does. At most `MOST_LEFT` of a channel may be; while they
last, the channel sends nothing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from uuid import UUID

from jobs import http
from jobs.rules.errors import error_of
from jobs.secrets import in_one_line, mask

DEADLINE = 15.0  # seconds
ANSWER = 1_000_000  # bytes of an answer that are read
MOST_LEFT = 3
LONGEST_ERROR = 300  # characters
# The receiver will never take this message. Others may pass: a wrong address can be mended while the message waits.
FINAL = frozenset({410, 413, 422})

NO_ANSWER = "There was no complete answer within {:g} s: check that the server is up. It is tried again later."
REMEMBERED = 10_000  # parts of messages

_sent: dict[tuple[UUID, str], None] = {}
_left: Counter[str] = Counter()
_lock = threading.Lock()


class ChannelError(Exception):
    """A message could not be sent. The sentence says why and what to do, and never holds a secret.

    `is_permanent`: another try would change nothing. `retry_after`: the seconds that the receiver asks to wait.
    """

    def __init__(self, sentence: str, is_permanent: bool = False, retry_after: float | None = None) -> None:
        super().__init__(" ".join(mask(sentence).split()))
        self.is_permanent, self.retry_after = is_permanent, retry_after


def in_thread(name: str, call: Callable[[], None], seconds: float, cut: Callable[[], None] = lambda: None) -> None:
    """Run a call that may hang, for channel `name`. At the deadline, `cut` may end it. Raises ChannelError."""
    with _lock:
        if _left[name] >= MOST_LEFT:
            raise ChannelError(
                f"{MOST_LEFT} earlier messages still hang: check the server. Sending goes on when they end, or after"
                " a restart of this process."
            )
        _left[name] += 1
    answer: Future[Exception | None] = Future()

    def run() -> None:
        try:
            answer.set_result(error_of(call))
        finally:
            with _lock:
                _left[name] -= 1

    threading.Thread(target=run, name=f"channel {name}", daemon=True).start()
    try:
        error = answer.result(seconds)
    except TimeoutError:
        cut()
        raise ChannelError(NO_ANSWER.format(seconds)) from None
    if isinstance(error, ChannelError):
        raise error
    if error:
        raise ChannelError(f"It failed: {in_one_line(error, LONGEST_ERROR)}") from None


def call(method: str, address: str, headers: Mapping[str, str], body: bytes | None, seconds: float) -> None:
    """Send an HTTP request that changes something there. Private addresses are allowed. Raises ChannelError."""
    client = http.Client(address, allow_private=True, follows=False)
    try:
        url = client.locate(address)
        answer = client.send(http.Request(method, url, headers, body), seconds, ANSWER)
    except http.TimedOut:
        raise ChannelError(
            f"{url.host} gave no complete answer within {seconds:g} s: check that it is up, and that this machine can"
            " reach it."
        ) from None
    except http.Unreachable as error:
        raise ChannelError(f"{str(error).rstrip('.')}. Check its address, and that it is up.") from None
    except http.FetchError as error:
        raise ChannelError(str(error)) from None
    _check(url.host, answer)


def _check(host: str, answer: http.Response) -> None:
    status = answer.status
    if 200 <= status < 300:
        return
    if status in http.REDIRECTS:
        raise ChannelError(f"{host} redirects to another address ({status}): give the final address.")
    advice = "it is tried again later" if status >= 500 or status == 429 else "check its address"
    advice += ", and the key" if status in {400, 401, 403} else ""
    after = _seconds(answer.headers.get("retry-after", ""))
    raise ChannelError(f"{host} answered {status}: {advice}.", status in FINAL, after)


def _seconds(text: str) -> float | None:
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 8 else None


def was_sent(message: UUID, part: str) -> bool:
    """Whether this process has sent that part of a message, such as that to one of several addresses."""
    return (message, part) in _sent


def note_sent(message: UUID, part: str) -> None:
    with _lock:
        _sent[message, part] = None
        if len(_sent) > REMEMBERED:
            del _sent[next(iter(_sent))]


class Deadline:
    """Until when something may go on."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def check(self) -> None:
        """Stop what its caller no longer waits for. Raises ChannelError."""
        if time.monotonic() >= self._end:
            raise ChannelError(NO_ANSWER.format(self._seconds))
