"""Why a request is not answered: an HTTP status and one line."""

from ..values import cut


class Refused(Exception):
    """A request that is refused: status (400 to 599), one line, and headers of the answer."""

    def __init__(self, status: int, line: str, headers: dict[str, str] | None = None):
        super().__init__(line)
        self.status, self.line, self.headers = status, one_line(line), headers or {}


def one_line(text: str) -> str:
    """A text as one printable line of at most 300 letters, whatever a request has put into it."""
    text = " ".join(cut(text, 300).split()).encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else "?" for c in text)
