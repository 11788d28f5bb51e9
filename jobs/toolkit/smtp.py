"""Did the mail server take this message? It did; or it refused it, put it off, or broke off: then nobody knows.

Its one rule: those four are told apart, because each asks for something else. Before a message the connection is tried,
and renewed if the server has let it go meanwhile; so only a server that breaks off in the middle of one leaves a doubt.

Limits: only SMTP has such answers. Other backends of Django (console, file) take whatever they are given.
"""

import smtplib
from contextlib import suppress

from django.core.mail import EmailMessage, get_connection
from django.core.mail.backends.smtp import EmailBackend

TOO_LARGE = 552  # the answer to a message, not to its sender
MOST_BREAKS = 3  # times in a row that a server may break off before it counts as down


class MailError(Exception):
    """A message has not gone to all. It says why and what to do, and never repeats a whole address."""


class ServerError(MailError):
    """The mail server cannot be reached, or takes no mail from us: nothing has gone out."""


class Reply(Exception):  # noqa: N818 - an answer, and no error of ours
    """What the server said to a message, instead of taking it."""


class Refused(Reply):
    """It will not take the message for this address, whenever it is asked."""


class Deferred(Reply):
    """It does not take the message for this address now."""


class BrokeOff(Reply):
    """Nobody knows whether it took the message."""


class Server:
    """The mail server of the settings. Leaving its `with` block by an exception sends no QUIT and waits for nothing."""

    def __init__(self) -> None:
        self._backend = get_connection()
        self._breaks = 0

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error:
            self.hang_up()
        else:
            self.close()

    def make_ready(self) -> None:
        """Have a connection on which the server answers. Raises ServerError."""
        if self._breaks >= MOST_BREAKS:
            raise ServerError(f"The mail server broke off {MOST_BREAKS} times in a row: look into its log.")
        if self._is_stale():
            self.close()
        try:
            self._backend.open()
            if connection := self._connection():
                connection.ehlo_or_helo_if_needed()
        except OSError as error:  # smtplib's errors are of this kind
            self.close()
            raise ServerError(f"The mail server lets nobody in: {error}. Is it up, and EMAIL_URL right?") from error

    def send(self, letter: EmailMessage) -> None:
        """Hand over a message to one address. Raises Refused, Deferred or BrokeOff; ServerError for all alike."""
        reply = self._reply_to(letter)
        if isinstance(reply, BrokeOff):
            self._breaks += 1
            self.close()
        else:
            self._breaks = 0
        if reply:
            raise reply

    def close(self) -> None:
        """Say goodbye, where it still listens."""
        with suppress(OSError):
            self._backend.close()

    def hang_up(self) -> None:
        """End the connection without a word."""
        if connection := self._connection():
            connection.close()

    def _reply_to(self, letter: EmailMessage) -> Reply | None:
        """What it said instead of taking the message."""
        try:
            self._backend.send_messages([letter])
        except smtplib.SMTPSenderRefused as error:
            reply = _reply(error.smtp_code, error.smtp_error)
            if isinstance(reply, Refused) and error.smtp_code != TOO_LARGE:
                raise ServerError(
                    f"The mail server takes nothing from us, {reply}: look at DEFAULT_FROM_EMAIL and EMAIL_URL."
                ) from error
            return reply
        except smtplib.SMTPRecipientsRefused as error:
            (answer,) = error.recipients.values()
            return _reply(*answer)
        except smtplib.SMTPDataError as error:
            return _reply(error.smtp_code, error.smtp_error)
        except smtplib.SMTPNotSupportedError as error:
            return Refused(str(error))
        except OSError as error:
            return BrokeOff(str(error))
        return None

    def _connection(self) -> smtplib.SMTP | None:
        return self._backend.connection if isinstance(self._backend, EmailBackend) else None

    def _is_stale(self) -> bool:
        """Whether it does not answer; what a refused message left open is ended by the way."""
        connection = self._connection()
        try:
            return connection is not None and connection.rset()[0] != 250
        except OSError:
            return True


def _reply(code: int, text: bytes | str) -> Reply:
    reply = f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
    kinds = {4: Deferred, 5: Refused}
    return kinds.get(code // 100, BrokeOff)(reply)
