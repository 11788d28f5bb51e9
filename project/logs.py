"""Which paths may a log hold? All but links to stored files and tokens of the API, which every reader could use."""

import logging
import re

# Each character may be written as %XX, too: the site answers both.
LINK = re.compile("(" + "".join(f"(?:{each}|%{ord(each):x})" for each in "/files/") + r")[^\s?#\"]+", re.IGNORECASE)
TOKEN = re.compile(r"punctual_[\w-]{43}")  # in an address, where a program sent it by mistake


def without_links(value: object) -> object:
    """The value. If it is text, `***` replaces the token of each link, and each token of the API."""
    return TOKEN.sub("***", LINK.sub(r"\1***", value)) if isinstance(value, str) else value


class WithoutLinks(logging.Filter):
    """Masks links in the arguments of lines, such as the path of a request that failed."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(without_links, record.args))
        return True
