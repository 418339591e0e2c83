"""Pieces of sentences for people."""

from __future__ import annotations


def number_of(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: ``1 slide``, ``2 slides``; ``plural`` is for nouns that take more than an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
