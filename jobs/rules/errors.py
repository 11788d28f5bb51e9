"""What is wrong with what a person asked for? One error, whose message says it and what to do."""


class Invalid(ValueError):  # noqa: N818 - what it says of the request
    """A schedule, its arguments or a request cannot be accepted; the message is a sentence that says what to change."""
