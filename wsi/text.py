"""Words for people."""

from __future__ import annotations


def number_of(number: int, noun: str, plural: str = "") -> str:
    """``1 slide``, ``2 slides``; a plural that takes more than an s is given."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
