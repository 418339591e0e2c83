"""Pieces of sentences for people."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The first line of a library's error; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def number_of(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: ``1 slide``, ``2 slides``; ``plural`` is for nouns that take more than an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
