"""The pages that list the slides of a run: one, or for very many slides several, so that a browser can open them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipelines.runs.cohort import Failure
from wsi.results.folder import Folder

PAGE_SLIDES = 1000  # a page of scores is then about 1 MB, and loads its pictures when they are scrolled to
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Page(Generic[R]):
    """One page of the list.

    Attributes:
        results: on this page.
        failures: on this page; they come after all results.
        number: of this page, from 1.
        count: of all pages.
    """

    results: Sequence[R]
    failures: Sequence[Failure]
    number: int
    count: int

    @property
    def links(self) -> list[tuple[str, str]]:
        """Words and file names of other pages: first, previous, next, last; none where there is one page."""
        last = self.count
        near = {"first": 1, "previous": self.number - 1, "next": self.number + 1, "last": last}
        return [(word, page_name(n)) for word, n in near.items() if 1 <= n <= last and n != self.number]


def page_name(number: int) -> str:
    """File name of a page, whose number counts from 1."""
    return "index.html" if number == 1 else f"index-{number}.html"


def in_pages(results: Sequence[R], failures: Sequence[Failure]) -> list[Page[R]]:
    """Results, then failures, in pages of `PAGE_SLIDES`; nothing is one empty page."""
    total = len(results) + len(failures)
    starts = range(0, max(total, 1), PAGE_SLIDES)
    return [
        Page(
            results[start : start + PAGE_SLIDES],
            failures[max(0, start - len(results)) : max(0, start - len(results) + PAGE_SLIDES)],
            number,
            len(starts),
        )
        for number, start in enumerate(starts, start=1)
    ]


def write_pages(out: Folder, pages: Sequence[Page[R]], html: Callable[[Page[R]], str]) -> list[str]:
    """Write all pages, remove those that an earlier and longer list left, and return the names.

    Raises:
        StoreError: the folder cannot be written.
    """
    for page in pages:
        out.write(page_name(page.number), html(page))
    old = len(pages) + 1
    while out.exists(page_name(old)):
        out.delete(page_name(old))
        old += 1
    return [page_name(page.number) for page in pages]
