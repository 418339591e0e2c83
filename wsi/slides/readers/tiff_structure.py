"""Checks of a TIFF's structure before its pixels are read: is it complete, and of a kind that can be read?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import tifffile

from wsi.errors import SlideError

TIFF_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".svslide")


def check_tiff(path: str) -> None:
    """Refuse a TIFF that is cut short, or whose pixels are not 8-bit RGB or grey.

    A truncated file may decode in part: levels or the lower half of the slide are then missing, and nobody would know.
    A file that is no TIFF at all, or that tifffile does not know, is left to the readers.

    Raises:
        SlideError: the file is cut short, or holds another kind of pixels.
    """
    _check_first_page(path)
    try:
        with tifffile.TiffFile(path) as tif:
            problem = tiff_problem(tif)
    except Exception:  # a broken structure may raise anything in tifffile; the readers report it
        return
    if problem:
        raise SlideError(f"{path} {problem}")


def _check_first_page(path: str) -> None:
    """Refuse a TIFF whose first page would begin beyond the file's end: programs write it last.

    Raises:
        SlideError: the file is cut short.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(16)
            size = file.seek(0, 2)
    except OSError:
        return  # the readers report it
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    start = {b"II*\0": (4, 8), b"MM\0*": (4, 8), b"II+\0": (8, 16), b"MM\0+": (8, 16)}.get(head[:4])
    if start is None:
        return
    first_page = int.from_bytes(head[slice(*start)], order)
    if len(head) < start[1] or first_page >= size:
        raise SlideError(
            f"{path} is cut short: its first page begins at byte {first_page:,}, and it ends at {size:,}; copy it again"
        )


def tiff_problem(tif: tifffile.TiffFile) -> str:
    """Reason why a TIFF cannot be read as a slide, and the way out; empty if it can."""
    size = tif.filehandle.size
    end = max((_end(page) for page in _pages(tif)), default=0)
    end = max(end, _next_page(tif))
    if end > size:
        return f"is cut short: its pages reach to byte {end:,}, and the file ends at {size:,}; copy it again"
    kind = _pixels(tif.pages[0]) or _channels(tif)
    return f"{kind}; only 8-bit RGB or grey is read: convert it" if kind else ""


def _pages(tif: tifffile.TiffFile) -> list[Any]:
    """Every page, including those below another page (SubIFDs)."""
    pages = list(tif.pages)
    return pages + [subpage for page in pages for subpage in (getattr(page, "pages", None) or ())]


def _end(page: Any) -> int:
    """The byte after a page's last piece of data; pieces that were never written (sparse tiles) count nothing."""
    pieces = zip(page.dataoffsets, page.databytecounts, strict=False)
    return max((offset + count for offset, count in pieces if count), default=0)


def _next_page(tif: tifffile.TiffFile) -> int:
    """Offset of the page after the last one that can be read; 0 where there is none.

    tifffile stops in silence at a page that lies beyond the file's end.
    """
    form, file = tif.tiff, tif.filehandle
    file.seek(tif.pages[-1].offset)
    count = int.from_bytes(file.read(form.tagnosize), "little" if form.byteorder == "<" else "big")
    file.seek(tif.pages[-1].offset + form.tagnosize + count * form.tagsize)
    offset = int.from_bytes(file.read(form.offsetsize), "little" if form.byteorder == "<" else "big")
    return offset if offset > file.size else 0


def _pixels(page: Any) -> str:
    """Reason why a page's pixels cannot be read; empty if they can."""
    bits = page.bitspersample
    if bits != 8:
        return f"holds pixels of {bits} bits"
    if page.samplesperpixel not in (1, 3, 4):
        return f"holds {page.samplesperpixel} channels"
    # RGB (2) and YCbCr (6) may have an alpha channel
    if page.samplesperpixel == 4 and page.photometric not in (2, 6):
        return "holds 4 channels that are not red, green, blue and alpha"
    return ""


def _channels(tif: tifffile.TiffFile) -> str:
    """Reason why an OME-TIFF whose channels are separate pages cannot be read; empty if it can."""
    if not tif.is_ome:
        return ""
    series = tif.series[0]
    sizes = dict(zip(series.axes, series.shape, strict=True))
    channels = sizes.get("C", 1)
    pictures = math.prod(size for axis, size in sizes.items() if axis not in "CSYX")
    if pictures > 1:
        return f"is a stack of {pictures} pictures (axes {series.axes})"
    return f"holds {channels} channels of one colour each, as fluorescence does" if channels > 1 else ""
