"""Did the mail server accept this message? It accepts, refuses or defers it; or it breaks off, outcome unknown.

Its one rule: a caller can tell these four apart, because each needs a different reaction. `make_ready` checks the
connection before each message and reconnects if the server has closed it. So the outcome is unknown only if the server
breaks off in the middle of a message.

Limits: only SMTP tells them apart. Django's other backends (console, file) accept every message.
"""

import smtplib
import socket
from contextlib import suppress

from django.core.mail import EmailMessage, get_connection
from django.core.mail.backends.smtp import EmailBackend

TOO_LARGE = 552  # a message is too large; others of the same sender may pass
MOST_BREAKS = 3  # times in a row that a server may break off before it counts as down


class MailError(Exception):
    """A message was not sent to every address. The text says why and what to do, and never holds a whole address."""


class ServerError(MailError):
    """The mail server cannot be reached, or rejects all mail from us. This message was not sent."""


class Reply(Exception):  # noqa: N818 - the server's reply to one message
    """The server did not accept a message. The text is its reply."""


class Refused(Reply):
    """The server will never accept the message for this address."""


class Deferred(Reply):
    """The server does not accept the message for this address now."""


class BrokeOff(Reply):
    """It is unknown whether the server accepted the message."""


class Server:
    """The mail server of the settings. Leaving its `with` block by an exception sends no QUIT and waits for nothing."""

    def __init__(self, timeout: float | None = None) -> None:
        """`timeout` is in seconds, for each answer of the server; without it, EMAIL_TIMEOUT."""
        self._backend = get_connection()
        self._breaks = 0
        if timeout is not None and isinstance(self._backend, EmailBackend):
            self._backend.timeout = timeout

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error:
            self.hang_up()
        else:
            self.close()

    def make_ready(self) -> None:
        """Ensure an open connection on which the server answers. Raises ServerError."""
        if self._breaks >= MOST_BREAKS:
            raise ServerError(f"The mail server broke off {MOST_BREAKS} times in a row: check its log.")
        if self._is_stale():
            self.close()
        try:
            self._backend.open()
            if connection := self._connection():
                connection.ehlo_or_helo_if_needed()
        except OSError as error:  # smtplib's errors are of this kind
            self.close()
            raise ServerError(
                f"Cannot connect or log in to the mail server: {error}. Check EMAIL_URL, and that the server is up."
            ) from error

    def send(self, letter: EmailMessage) -> None:
        """Send a message to one address. Raises Refused, Deferred or BrokeOff; ServerError if all mail is rejected."""
        reply = self._reply_to(letter)
        if isinstance(reply, BrokeOff):
            self._breaks += 1
            self.close()
        else:
            self._breaks = 0
        if reply:
            raise reply

    def close(self) -> None:
        """Send QUIT and close the connection, even if it is already broken."""
        with suppress(OSError):
            self._backend.close()

    def hang_up(self) -> None:
        """Close the connection without QUIT."""
        if connection := self._connection():
            connection.close()

    def cut(self) -> None:
        """Break the connection, from any thread: one that waits for the server gets an error."""
        connection = self._connection()
        if connection and connection.sock:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def _reply_to(self, letter: EmailMessage) -> Reply | None:
        """Send the message. Returns the server's reply unless it accepted the message."""
        try:
            self._backend.send_messages([letter])
        except smtplib.SMTPSenderRefused as error:
            reply = _reply(error.smtp_code, error.smtp_error)
            if isinstance(reply, Refused) and error.smtp_code != TOO_LARGE:
                raise ServerError(
                    f"The mail server refuses our sender: {reply}. Check DEFAULT_FROM_EMAIL and EMAIL_URL."
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
        """Whether the server no longer answers. RSET also ends the transaction that a refused message left open."""
        connection = self._connection()
        try:
            return connection is not None and connection.rset()[0] != 250
        except OSError:
            return True


def _reply(code: int, text: bytes | str) -> Reply:
    reply = f"{code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"
    kinds = {4: Deferred, 5: Refused}
    return kinds.get(code // 100, BrokeOff)(reply)
