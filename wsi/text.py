"""Pieces of sentences for people."""

from __future__ import annotations

import re

# user and password, and the query, of a URL: the query may hold a signature
_SECRETS = re.compile(r"(\w+://)(?:[^\s/@'\"]*@)?([^\s?'\")]*)(?:\?[^\s'\")]*)?")


def first_line(error: Exception) -> str:
    """The first line of a library's error, without what is secret in URLs; its class where it says nothing."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return _SECRETS.sub(r"\1\2", line)


def number_of(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: ``1 slide``, ``2 slides``; ``plural`` is for nouns that take more than an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
