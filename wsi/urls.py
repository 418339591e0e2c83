"""URLs that fsspec opens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


def without_secrets(url: str) -> str:
    """A URL without user, password and query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.split('@')[-1]}{parts.path}"


def facts_text(facts: Mapping[str, Any]) -> str:
    """Size and version of a file, as its server states them."""
    keys = ("size", "ETag", "etag", "LastModified", "Last-Modified", "last_modified", "mtime", "created")
    return "".join(f" {key}={facts[key]}" for key in keys if key in facts)


def storage_options(path: str) -> dict[str, Any]:
    """Options with which fsspec opens a URL; a web server must not redirect to another host."""
    return {"get_client": _own_host_only} if path.lower().startswith(("http://", "https://")) else {}


async def _own_host_only(**options: Any) -> Any:
    """A web client that refuses redirects to another host, so that a table of slides reaches only its URLs' hosts."""
    import aiohttp

    async def check(_session: Any, _context: Any, params: Any) -> None:
        headers = params.response.headers
        target = headers.get("Location") or headers.get("URI", "")  # aiohttp follows either
        host = params.url.join(type(params.url)(target)).host
        if host != params.url.host:
            raise aiohttp.ClientError(f"the server sends it on to another host, {host}: give that URL itself")

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(check)
    return aiohttp.ClientSession(trace_configs=[trace], **options)
