"""The viewer's server: tiles, heatmaps and objects, to one user of this machine.

It listens on loopback. A random token in the first URL becomes a cookie; requests without it, from other sites, or for
another host name (DNS rebinding) are refused. Slides are named by ids of the collection, never by paths.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from pipelines.runs.review_log import StaleReviewError
from pipelines.web.collection import Collection, Entry, float_bytes
from pipelines.web.review import ReviewRequest
from wsi.config import first_mistake
from wsi.errors import RegionError, WsiError
from wsi.slides.slide import Slide
from wsi.slides.tiles import read_square

log = logging.getLogger(__name__)

TILE_PX = 512
QUALITY = 85  # of JPEG: on tissue no difference can be seen
LARGEST_PX = 8192  # side of what is read for one tile: of a slide without coarse levels no overview is made
LARGEST_REQUEST = 200_000  # bytes of a drawn outline of 2,000 points, and more
NO_REVIEW = "there is nothing to review"
GREY = 200  # of a tile that cannot be decoded
THUMBNAIL_PX = 160
STATIC = Path(__file__).with_name("static")
FILES = {
    "openseadragon.min.js": "text/javascript",
    "view.js": "text/javascript",
    "review.js": "text/javascript",
    "grid.js": "text/javascript",
    "beside.js": "text/javascript",
    "openapi.json": "application/json",
    "view.css": "text/css",
    "openseadragon.LICENSE.txt": "text/plain",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    # the one style sheet that OpenSeadragon adds, for screens that are touched
    "style-src 'self' 'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}

IN_OWN_FRAMES = {
    "Content-Security-Policy": HEADERS["Content-Security-Policy"].replace(
        "frame-ancestors 'none'", "frame-ancestors 'self'"
    ),
    "X-Frame-Options": "SAMEORIGIN",
}


def application(
    collection: Collection, token: str, hosts: frozenset[str] | None, beside: Collection | None = None
) -> Starlette:
    """The web application.

    Args:
        collection: what is shown.
        token: whoever does not know it sees nothing.
        hosts: values of the header Host that are answered; None: any, for servers that others may reach.
        beside: another run, which is shown in a page of its own beside the first.
    """
    headers = HEADERS if beside is None else HEADERS | IN_OWN_FRAMES

    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _refusal(request, token, hosts) or await call_next(request)
        response.headers.update(headers)
        return response

    if beside is None:
        routes: list[BaseRoute] = _routes(_Answers(collection, token, "view.html"))
    else:
        both = _Answers(collection, token, "beside.html")
        routes = [
            Route("/", both.page),
            Route("/static/{name}", both.static),
            Mount("/a", routes=_routes(_Answers(collection, token, "view.html"))),
            Mount("/b", routes=_routes(_Answers(beside, token, "view.html"))),
        ]
    return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=guard)])


def _routes(answers: _Answers) -> list[BaseRoute]:
    return [
        Route("/", answers.page),
        Route("/static/{name}", answers.static),
        Route("/api/slides", answers.slides),
        Route("/api/slides/{name}", answers.of_slide(answers.details)),
        Route("/api/slides/{name}/heat", answers.of_slide(answers.heat)),
        Route("/api/slides/{name}/review", answers.of_slide(answers.review)),
        Route("/api/slides/{name}/review", answers.of_slide(answers.decide), methods=["POST"]),
        Route("/api/slides/{name}/thumbnail.jpg", answers.of_slide(answers.thumbnail)),
        Route("/api/slides/{name}/tiles/{level:int}/{x:int}_{y:int}.jpg", answers.of_slide(answers.tile)),
    ]


class _Answers:
    """The answer to each kind of request."""

    def __init__(self, collection: Collection, token: str, page: str) -> None:
        self._collection, self._token, self._page = collection, token, page
        self._told: set[str] = set()  # what the terminal has been told

    def page(self, request: Request) -> Response:
        if "token" in request.query_params:  # it must not stay in the address, nor in the history
            response: Response = RedirectResponse("/", 303)
            response.set_cookie(
                cookie_of(self._token), self._token, httponly=True, samesite="strict", path="/"
            )
            return response
        return FileResponse(STATIC / self._page, media_type="text/html")

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            return JSONResponse({"error": "there is no such file"}, 404)
        return FileResponse(STATIC / name, media_type=FILES[name])

    def slides(self, request: Request) -> Response:
        return JSONResponse(self._collection.lines())

    def of_slide(self, make: Callable[[str, Request], Response]) -> Callable[[Request], Awaitable[Response]]:
        """An answer about one slide, whose faults are told by its name."""

        def made(request: Request) -> Response:
            name = request.path_params["name"]
            if name not in self._collection:
                return JSONResponse({"error": "there is no such slide"}, 404)
            try:
                return make(name, request)
            except StaleReviewError as error:
                return JSONResponse({"error": str(error), "stale": True}, 409)
            except (WsiError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                sentence = f"{name}: {error}"  # with the path, for the terminal only
                if sentence not in self._told:
                    self._told.add(sentence)
                    log.warning("%s", sentence)
                return JSONResponse({"error": _without_path(error, self._collection[name])}, 409)

        async def answer(request: Request) -> Response:
            if request.method == "POST":
                if request.headers.get("content-type") != "application/json":
                    return JSONResponse({"error": "send application/json"}, 415)
                if int(request.headers.get("content-length") or LARGEST_REQUEST + 1) > LARGEST_REQUEST:
                    return JSONResponse({"error": "the request is too long"}, 413)
                request.state.body = await request.body()
            return await run_in_threadpool(made, request)

        return answer

    def details(self, name: str, request: Request) -> Response:
        return JSONResponse(facts_of(name, self._collection.fresh(name), self._collection.slide(name)))

    def tile(self, name: str, request: Request) -> Response:
        level, x, y = (request.path_params[key] for key in ("level", "x", "y"))
        content = tile_jpeg(self._collection.slide(name), level, x, y)
        if content is None:
            return JSONResponse({"error": "there is no such tile"}, 404)
        return Response(content, media_type="image/jpeg")

    def thumbnail(self, name: str, request: Request) -> Response:
        return Response(thumbnail_jpeg(self._collection.slide(name)), media_type="image/jpeg")

    def review(self, name: str, request: Request) -> Response:
        review = self._collection.review(name)
        if review is None:
            return JSONResponse({"error": NO_REVIEW}, 404)
        return JSONResponse(review.state() | {"reviewer": self._collection.reviewer})

    def decide(self, name: str, request: Request) -> Response:
        review = self._collection.review(name)
        if review is None:
            return JSONResponse({"error": NO_REVIEW}, 404)
        if self._collection.reviewer is None:
            return JSONResponse({"error": "the viewer was started with --read-only"}, 403)
        try:
            asked = ReviewRequest.model_validate_json(request.state.body)
        except ValidationError as error:
            return JSONResponse({"error": f"the request is not understood ({first_mistake(error)})"}, 422)
        state = review.do(asked)
        if asked.what == "sign":
            self._collection.look_again(name)
        return JSONResponse(state)

    def heat(self, name: str, request: Request) -> Response:
        entry = self._collection.fresh(name)
        if entry.kind != "scored":
            return JSONResponse({"error": "the slide has no heatmap"}, 404)
        return Response(float_bytes(entry.heatmap()), media_type="application/octet-stream")


def _refusal(request: Request, token: str, hosts: frozenset[str] | None) -> Response | None:
    """Why a request is refused; None where it is answered."""
    host = request.headers.get("host", "")
    if hosts is not None and host not in hosts:
        return JSONResponse({"error": "this server answers to its own address only"}, 400)
    origin = request.headers.get("origin")
    if origin is not None and origin != f"{request.url.scheme}://{host}":
        return JSONResponse({"error": "requests of other sites are refused"}, 403)
    given = request.cookies.get(cookie_of(token), "")
    if request.url.path == "/":
        given = request.query_params.get("token", given)
    if not hmac.compare_digest(given.encode(), token.encode()):
        return JSONResponse({"error": "open the address that wsi view printed"}, 403)
    return None


def cookie_of(token: str) -> str:
    """Name of the cookie; that of another viewer, at another port of this machine, is another one."""
    return f"slidewright-{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def _without_path(error: Exception, entry: Entry) -> str:
    """The error's sentence, with the slide's name in place of paths; of other errors only their kind."""
    if isinstance(error, OSError) and error.filename:
        return f"{Path(str(error.filename)).name} is missing or cannot be read; wsi verify tells more"
    if not isinstance(error, WsiError):
        return f"a result or the slide is broken ({type(error).__name__}); the terminal tells more"
    if not entry.source.is_url and not Path(entry.source.path).exists():
        return "the slide's file was moved or removed; start wsi view again with --slides and its folder"
    text = str(error)
    folders = [] if entry.folder is None else [str(entry.folder), str(entry.folder.parent)]
    for path in (entry.source.place, entry.source.path, *folders):
        text = text.replace(path, entry.name)
    return text


def facts_of(name: str, entry: Entry, slide: Slide) -> dict[str, Any]:
    """Everything that the page needs of a slide, but its pixels and scores.

    Raises:
        StoreError: a result is broken.
    """
    facts = {
        "id": name,
        "kind": entry.kind,
        "width": slide.size[0],
        "height": slide.size[1],
        "mpp": slide.mpp if slide.spacing is not None else None,
        "tile": TILE_PX,
    }
    return facts | entry.details()


def levels_of(size: tuple[int, int]) -> int:
    """Number of the finest level; level n is the slide reduced 2 ** (finest - n) times."""
    return max(0, math.ceil(math.log2(max(size))))


def tiles_of(size: tuple[int, int], level: int) -> list[tuple[int, int]]:
    """The (x, y) of all tiles of a level, row by row."""
    cols, rows = (math.ceil(math.ceil(side / 2 ** (levels_of(size) - level)) / TILE_PX) for side in size)
    return [(x, y) for y in range(rows) for x in range(cols)]


def thumbnail_jpeg(slide: Slide) -> bytes:
    """The whole slide in one small picture."""
    halvings = max(0, int(math.log2(max(slide.size) / THUMBNAIL_PX)))  # one tile holds it all then
    return tile_jpeg(slide, max(0, levels_of(slide.size) - halvings), 0, 0) or b""


def tile_jpeg(slide: Slide, level: int, x: int, y: int) -> bytes | None:
    """One tile of a level; None where there is none. What cannot be decoded is grey.

    Tiles at the right and at the bottom end with the slide.
    """
    finest = levels_of(slide.size)
    if not 0 <= level <= finest:
        return None
    scale = 2 ** (finest - level)
    size = [
        min(TILE_PX, math.ceil(side / scale) - n * TILE_PX)
        for side, n in zip(slide.size, (x, y), strict=True)
    ]
    if min(x, y) < 0 or min(size) <= 0:
        return None
    corner = (x * TILE_PX * scale, y * TILE_PX * scale)
    side = max(size)  # less than a tile's where the slide ends
    side_level = side * scale / slide.levels[slide.level_for(scale)].downsample
    try:
        if side_level > LARGEST_PX:
            raise RegionError(f"{slide.path} has no level that is coarse enough for an overview")
        pixels = read_square(slide, corner, side * scale, side)
    except RegionError as error:
        log.warning("%s", error)
        pixels = np.full((side, side, 3), GREY, np.uint8)
    return _jpeg(pixels[: size[1], : size[0]])


def _jpeg(pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]) -> bytes:
    settings = (cv2.IMWRITE_JPEG_QUALITY, QUALITY)
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), settings)[1].tobytes()
