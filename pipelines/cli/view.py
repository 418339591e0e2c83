"""``wsi view``: it shows slides and results in a browser, from a server on this machine."""

from __future__ import annotations

import secrets
import socket
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import err, out, progress
from pipelines.runs.cohort import gather, unique_names
from pipelines.web.collection import Collection, Entry, entries_of, found_again, with_truth
from wsi.errors import ConfigError
from wsi.files import cache_folder
from wsi.results.folder import folder_at
from wsi.slides.source import SLIDE_SUFFIXES
from wsi.text import number_of

LOOPBACK = "127.0.0.1"


def view(
    things: Annotated[
        list[str],
        typer.Argument(
            metavar="THINGS",
            help="The --out of wsi score or wsi renal report (one), or slides, folders of slides, a table of slides.",
        ),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen at; 0 takes one that is free.")
    ] = 0,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen at. Any but 127.0.0.1 lets other machines in, who know the token."
        ),
    ] = LOOPBACK,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only look: nobody can correct or sign.")
    ] = False,
    truth: Annotated[
        Path | None,
        typer.Option(help="A folder with outlines NAME.xml or NAME.geojson, drawn over the slides."),
    ] = None,
    beside: Annotated[
        str | None, typer.Option(help="The --out of another run of the same slides: both are shown, linked.")
    ] = None,
    slides: Annotated[
        str | None,
        typer.Option(help="Where the slides are now, if they were moved: a folder or a table of slides."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Write a folder instead that opens in a browser without this program: to look only.",
        ),
    ] = None,
    export_mpp: Annotated[
        float, typer.Option(min=0.01, help="Micrometres per pixel of the finest tiles in that folder.")
    ] = 1.0,
    by: Annotated[
        str, typer.Option(help="The reviewer's name, which the page proposes.", show_default="asked for")
    ] = "",
) -> None:
    """Look at slides and results in a browser; correct and sign there what the machine found.

    Nothing leaves this machine, and nothing is changed but by a person's decisions. Ctrl-C ends it.

    Examples:
    wsi view results

    wsi view reports --by "A. Smith"

    wsi view my_slide.svs

    wsi view results --export site
    """
    entries = _entries(things)
    runs = [entries] if beside is None else [entries, entries_of(folder_at(beside))]
    if slides is not None:
        rows = gather([slides], mpp=None, allow_anisotropic=True)
        runs = [found_again(part, rows) for part in runs]
    if truth is not None:
        runs = [with_truth(part, truth) for part in runs]
    entries = runs[0]
    _refuse_strangers(runs, export)
    if export is not None:
        _export(Collection(entries), export, export_mpp)
        return
    host = LOOPBACK if host in ("localhost", "::1") else host
    token = secrets.token_urlsafe(24)
    with listening(host, port) as listener:
        port = listener.getsockname()[1]
        if host != LOOPBACK:
            err.print(
                f"{host}: whoever reaches this machine and knows the address below sees these slides; there is no "
                f"encryption",
                markup=False,
            )
        shown_host = socket.gethostname() if host == "0.0.0.0" else host
        address = f"http://{shown_host}:{port}/?token={token}"
        out.print(f"{number_of(len(entries), 'slide')}; open {address}", markup=False)
        out.print("Ctrl-C ends it; for research use only")
        with _opened(address) if browser else nullcontext():
            serve(listener, token, host, *(Collection(part, None if read_only else by) for part in runs))


def _refuse_strangers(runs: list[list[Entry]], export: Path | None) -> None:
    """Refuse two runs without a slide in common, and an export of two."""
    if len(runs) == 1:
        return
    if export is not None:
        raise ConfigError("--export takes one run; leave out --beside")
    if not {e.name for e in runs[0]} & {e.name for e in runs[1]}:
        raise ConfigError("the two runs have no slide in common; give two runs of the same slides")


def _export(collection: Collection, folder: Path, mpp: float) -> None:
    from pipelines.web.export import export_site

    try:
        with progress("tiles") as tick:
            files, size = export_site(collection, folder, mpp, tick)
    finally:
        collection.close()
    out.print(
        f"{folder / 'index.html'} shows {number_of(len(collection), 'slide')} in any browser: {files} files, "
        f"{size / 1e6:,.1f} MB; for research use only",
        markup=False,
    )


@contextmanager
def _opened(address: str) -> Iterator[None]:
    """Open a browser by a file that only this user can read: its command line can be read by others of the machine."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=cache_folder(), prefix="view-"
    ) as name:  # only its owner may look into it
        page = Path(name) / "open.html"
        page.write_text(f'<meta http-equiv="refresh" content="0; url={address}">', encoding="utf-8")
        webbrowser.open(page.as_uri())
        yield


def _entries(things: list[str]) -> list[Entry]:
    """The slides of one results folder, or slides as they are."""
    results = [thing for thing in things if _has_results(thing)]
    if results and len(things) > 1:
        raise ConfigError(
            f"{results[0]} is a folder of results; give one such folder, and a second one with --beside"
        )
    if results:
        return entries_of(folder_at(results[0]))
    rows = gather(things, mpp=None, allow_anisotropic=True)
    if len(rows) == 1:
        rows[0].source.open().close()  # what is wrong with it is said here, not in the browser
    return [Entry(name, "slide", row.source) for row, name in zip(rows, unique_names(rows), strict=True)]


def _has_results(thing: str) -> bool:
    if thing.lower().endswith((*SLIDE_SUFFIXES, ".csv", ".parquet")):
        return False
    folder = folder_at(thing)
    begun = any(folder.exists(f"{name}/heatmap.zarr") for name in folder.folders())
    return (
        begun
        or folder.exists("run.json")
        or folder.exists("slide.json")
        or bool(folder.holding("slide.json"))
    )


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        ConfigError: the address is taken, or is none of this machine.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # the browser may ask before the server is ready
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen at {host}, port {port} ({error.strerror or error}); choose another --port (0 for any), or "
            f"an address of this machine"
        ) from error
    return listener


def serve(
    listener: socket.socket, token: str, host: str, collection: Collection, beside: Collection | None = None
) -> None:
    """Answer until Ctrl-C.

    Args:
        listener: a bound socket.
        token: whoever does not know it sees nothing.
        host: where it listens; on loopback only requests to loopback's names are answered.
        collection: what is shown.
        beside: another run of the same slides.
    """
    import uvicorn

    from pipelines.web.server import application

    port = listener.getsockname()[1]
    names = (LOOPBACK, "localhost")
    hosts = frozenset(f"{name}:{port}" for name in names) if host == LOOPBACK else None
    config = uvicorn.Config(
        application(collection, token, hosts, beside),
        log_level="error",
        access_log=False,
        server_header=False,
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # this is how it ends
    finally:
        collection.close()
        if beside is not None:
            beside.close()
