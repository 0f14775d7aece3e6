"""Errors that a user can cause and mend. Everything else is a bug and stays a plain Python error."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_REASON = 300
"""Characters of another library's words that one line of ours repeats."""


class IntvitError(ValueError):
    """Bad input: one line that names the place, the rule and the actual value. The CLI exits with 2."""


class Infeasible(IntvitError):
    """A method that is not defined at a site, as at its scale."""

    def __init__(self, site: str, why: str) -> None:
        super().__init__(f"{site}: {why}")
        self.site, self.why = site, why

    def __reduce__(self) -> tuple[type[Infeasible], tuple[str, str]]:
        return Infeasible, (self.site, self.why)


class Beyond(IntvitError):
    """A value of one image that no word of the datapath holds; `image` is counted from the first of a batch."""

    def __init__(self, what: str, image: int) -> None:
        super().__init__(f"{what} of image {image}")
        self.what, self.image = what, image

    def __reduce__(self) -> tuple[type[Beyond], tuple[str, int]]:
        return Beyond, (self.what, self.image)


def reason(error: BaseException) -> str:
    """What an exception says, as one printable line; an OSError as its reason, without its number.

    >>> reason(ValueError("first\\nsecond")), reason(RecursionError())
    ('first', 'RecursionError')
    """
    text = getattr(error, "strerror", None) or str(error)
    line = next((part.strip() for part in str(text).splitlines() if part.strip()), "")
    line = "".join(c if c.isprintable() else "?" for c in line)
    if not line or isinstance(error, (KeyError, MemoryError)):
        line = f"{type(error).__name__} {line}".strip()
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 3] + "..."


def shortened(value: object) -> str:
    """A value as it was read, in one printable line of bearable length.

    >>> shortened(["a", 1])
    "['a', 1]"
    """
    try:
        text = repr(value)
    except RecursionError:
        text = reprlib.repr(value)
    return reason(ValueError(text))


@contextmanager
def placed(where: object) -> Iterator[None]:
    """Every IntvitError from inside gets `where: ` in front of it."""
    try:
        yield
    except Beyond as error:
        raise Beyond(f"{where}: {error.what}", error.image) from None
    except IntvitError as error:
        raise IntvitError(f"{where}: {error}") from None


@contextmanager
def reading(where: object, what: str) -> Iterator[None]:
    """The border of a loader: whatever goes wrong inside becomes `where: must be <what>, not: <reason>`.

    Inside belongs what interprets foreign bytes and nothing else, so that no bug of ours hides behind a bad file.
    """
    try:
        yield
    except IntvitError:
        raise
    except Exception as error:
        raise IntvitError(f"{where}: must be {what}, not: {reason(error)}") from None
