"""What cannot be read of a value in a Cyrus database: said once for records and quotas."""


class Malformed(Exception):
    """A value that Cyrus does not understand either.

    `text` is Cyrus' own error text, which its smmapd sends to the client; `why` is for the log, and names the place.
    """

    def __init__(self, text: str, why: str) -> None:
        super().__init__(f"{text} ({why})")
        self.text = text
        self.why = why


BAD_FORMAT = "Mailbox has an invalid format"
BAD_IDENTIFIER = "Invalid identifier"
IO_ERROR = "System I/O error"
ZERO_LENGTH = "Zero-length message literal"
