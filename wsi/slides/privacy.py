"""What a slide's file tells of a patient, a person or a day, beside its pixels. Nothing of it goes into an output."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openslide
import tifffile

from wsi.errors import SlideError
from wsi.slides.source import SlideSource

_TELLING = re.compile(
    r"name|patient|birth|date|time|barcode|accession|user|operator|artist|host|serial|owner|title|"
    r"(scanscope|slide|image|study|series|instance|specimen|container|case).?(id|uid)\b|identifier",
    re.IGNORECASE,
)
_TECHNICAL = re.compile(
    r"^openslide\.(level|region|vendor|quickhash|bounds|mpp|objective|background|comment|icc|associated)|exposure|"
    r"modelname|manufacturer|colou?rname|layer|filter|nonhier|hierarchical|stagename|compression|resolution|timezone",
    re.IGNORECASE,
)
_TAGS = ("Artist", "DateTime", "HostComputer", "Copyright", "DocumentName", "PageName", "ImageUniqueID")
_FIELD = re.compile(r"\|\s*([^|=]{1,60}?)\s*=\s*([^|]*)")  # of Aperio's ImageDescription


@dataclass(frozen=True, slots=True)
class Trace:
    """Something in a slide's file by which a person or a day may be known: its place there, and its value."""

    where: str
    value: str


def traces(source: SlideSource) -> list[Trace]:
    """What a slide's file tells in the properties that OpenSlide names, in TIFF tags, and in Aperio's description.

    Pictures of label and macro are named, not read. EXIF of plain pictures, OME-XML, free text and the file's own name
    are not looked at.

    Args:
        source: a file on this machine.

    Raises:
        SlideError: no reader knows the file.
    """
    if source.is_url:
        raise SlideError(f"{source.label}: what a file tells is looked for on this machine; copy it here")
    found = {trace.where: trace for trace in (*_of_openslide(source.path), *_of_tiff(source.path))}
    if not found:
        source.open().close()  # an unknown file must not look like one that tells nothing
    return list(found.values())


def _of_openslide(path: str) -> list[Trace]:
    with suppress(openslide.OpenSlideError, OSError), openslide.OpenSlide(path) as slide:
        pictures = [Trace(f"picture {name!r}", "may show a label") for name in slide.associated_images]
        return pictures + [
            Trace(f"property {key}", value)
            for key, value in slide.properties.items()
            if value.strip() and _TELLING.search(key) and not _TECHNICAL.search(key)
        ]
    return []


def _tells(key: str) -> bool:
    return bool(_TELLING.search(key)) and not _TECHNICAL.search(key)


def _of_tiff(path: str) -> list[Trace]:
    if Path(path).suffix.lower() not in (".tif", ".tiff", ".svs", ".ndpi", ".scn", ".bif", ".svslide"):
        return []
    with suppress(tifffile.TiffFileError, OSError, ValueError), tifffile.TiffFile(path) as tif:
        return [trace for page in tif.pages[:20] for trace in _of_page(page)]
    return []


def _of_page(page: Any) -> list[Trace]:
    tags = {name: str(page.tags[name].value) for name in _TAGS if name in page.tags}
    description = str(getattr(page, "description", "") or "")
    fields = {name: value for name, value in _FIELD.findall(description) if _tells(name)}
    return [
        *(Trace(f"tag {name}", value) for name, value in tags.items() if value.strip()),
        *(
            Trace(f"ImageDescription {name}", value.strip())
            for name, value in fields.items()
            if value.strip()
        ),
    ]
