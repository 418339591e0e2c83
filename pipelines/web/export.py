"""A collection as a folder that opens in a browser from a disk or any web server, without Python: to look only."""

from __future__ import annotations

import base64
import json
import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipelines.runs.made_by import version
from pipelines.web.collection import Collection, float_bytes
from pipelines.web.server import FILES, STATIC, facts_of, levels_of, thumbnail_jpeg, tile_jpeg, tiles_of
from wsi.errors import ConfigError
from wsi.files import write_bytes
from wsi.slides.slide import Slide

DATA, SIGN = (
    "data.js",
    "// made by wsi view --export\n",
)  # the first line of this file, by which an export is known
THREADS = 4
DEFAULT_REDUCTION = 4.0  # of a slide whose micron size is not known


def export_site(
    collection: Collection, out: Path, mpp: float, tick: Callable[[int, int, str], None]
) -> tuple[int, int]:
    """Write the page and everything that it shows; give the number of files and of bytes.

    A page from a disk may not fetch, so data are scripts, and pictures are pictures.

    Args:
        collection: what is shown.
        out: the folder; empty, not there, or an earlier export, which is replaced file by file.
        mpp: micrometres per pixel of the finest tiles.
        tick: called with (tiles done, tiles, slide).

    Raises:
        ConfigError: the folder holds something else.
        WsiError: a slide cannot be opened.
    """
    if not _is_free(out):
        raise ConfigError(f"{out} holds something else; choose another folder for the export")
    # an earlier export may hold slides that this one must not give away
    shutil.rmtree(out / "slides", ignore_errors=True)
    _write(out / DATA, SIGN)  # so that an export that is stopped can be made again
    page = (STATIC / "view.html").read_text(encoding="utf-8")
    page = page.replace("<script", f'<script src="{DATA}" defer></script>\n<script', 1)
    sizes = [_write(out / "index.html", page)]
    sizes += [_write(out / "static" / name, (STATIC / name).read_bytes()) for name in FILES]
    lines = collection.lines()
    places = {line["id"]: f"slides/{number}" for number, line in enumerate(lines, start=1)}
    plans = {name: _levels(collection.slide(name), mpp) for name in places}
    total = sum(
        len(tiles_of(collection.slide(name).size, level)) for name, n in plans.items() for level in range(n)
    )
    done = 0
    for name, place in places.items():
        slide, entry = collection.slide(name), collection[name]
        details = facts_of(name, entry, slide) | {"levels": plans[name]}
        review = collection.review(name)
        details |= {} if review is None else {"review": review.state()}
        heat = base64.b64encode(float_bytes(entry.heatmap())).decode() if entry.kind == "scored" else ""
        value = json.dumps({"details": details, "heat": heat}, allow_nan=False)
        sizes.append(_write(out / place / "data.js", f"EXPORTED.slides[{json.dumps(name)}] = {value};\n"))
        sizes.append(_write(out / place / "thumbnail.jpg", thumbnail_jpeg(slide)))
        tiles = [(level, x, y) for level in range(plans[name]) for x, y in tiles_of(slide.size, level)]
        with ThreadPoolExecutor(THREADS) as pool:
            contents = pool.map(partial(tile_jpeg, slide), *zip(*tiles, strict=True))
            for (level, x, y), content in zip(tiles, contents, strict=True):
                sizes.append(_write(out / place / "tiles" / str(level) / f"{x}_{y}.jpg", content or b""))
                done += 1
                tick(done, total, name)
    exported = {
        "version": version(),
        "list": [line | {"place": places[line["id"]]} for line in lines],
        "slides": {},
    }
    sizes.append(_write(out / DATA, f"{SIGN}const EXPORTED = {json.dumps(exported, allow_nan=False)};\n"))
    return len(sizes), sum(sizes)


def _is_free(out: Path) -> bool:
    """Whether an export may be written there: nothing is lost by it but an earlier export."""
    if not out.is_dir():
        return not out.exists()
    data = out / DATA
    is_export = data.is_file() and data.read_bytes().startswith(SIGN.encode())
    return is_export or not any(out.iterdir())


def _levels(slide: Slide, mpp: float) -> int:
    """The number of levels that are written: up to the first that is at least as fine as asked for."""
    finest = levels_of(slide.size)
    reduction = mpp / slide.mpp if slide.spacing is not None else DEFAULT_REDUCTION
    return finest + 1 - max(0, math.floor(math.log2(max(reduction, 1.0)) + 1e-9))


def _write(path: Path, content: str | bytes) -> int:
    data = content.encode() if isinstance(content, str) else content
    write_bytes(path, data)
    return len(data)
