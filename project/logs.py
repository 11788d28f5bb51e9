"""Which paths may a log hold? Not the links that open a stored file for anyone who has them."""

import logging
import re

LINK = re.compile(r"/files/[^\s?#\"]+")


def without_links(value: object) -> object:
    """The value, and in a text a mask for the token of each link."""
    return LINK.sub("/files/***", value) if isinstance(value, str) else value


class WithoutLinks(logging.Filter):
    """Masks links in the arguments of lines, such as the path of a request that failed."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(map(without_links, record.args))
        return True
