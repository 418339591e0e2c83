"""``wsi serve``, ``wsi submit`` and ``wsi queue``: slides by their deadlines, on one machine."""

from __future__ import annotations

import json
import re
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from urllib.parse import quote

import numpy as np
import typer

from models.card import DEFAULT_MODEL, ModelCard
from models.engines import Engine, EngineConfig, find_models, load_engine
from pipelines.cli.console import duration, err, out, progress
from pipelines.cli.options import EngineName, ModelNames, Mpp, Out, Precision
from pipelines.runs.cohort import Failure, gather
from pipelines.runs.made_by import run_record
from pipelines.runs.run_folder import FINISHED, RunFolder, refuse_other_run
from pipelines.service.governor import Governor
from pipelines.service.jobs import OPEN, JobRecord
from pipelines.service.schedule import Pace, Policy
from pipelines.service.server import API, application
from pipelines.service.service import RefusedError, Service, Work
from pipelines.service.simulate import Figures, compared, read_trace
from pipelines.service.watch import Watcher
from wsi.errors import ConfigError, StoreError
from wsi.files import held, write_private
from wsi.results.folder import Folder, LocalFolder
from wsi.slides.blocks import PatchBlock
from wsi.slides.grid import make_grid
from wsi.slides.manifest import SlideRow
from wsi.slides.slide import plan_read
from wsi.slides.tissue import DENSITY, TissueConfig, find_tissue
from wsi.text import number_of

LOOPBACK = "127.0.0.1"
ADDRESS = (
    ".service/address.json"  # of the server of a results folder, with its token; only its owner can read it
)
WARM_UP = 64  # patches by which the pace is measured before the first slide
FIRST_SLIDE_S = 5.0  # of a slide besides its cells, before one was seen
CHUNK_CELLS = 1024  # of a full chunk
TIMEOUT_S = 180.0  # a submission waits until its tissue is found
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy must not learn the token
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def serve(
    folder: Out,
    model: ModelNames = None,
    kidneys: Annotated[
        bool, typer.Option("--kidneys", help="Report on C4d in kidneys instead of scoring lymph nodes.")
    ] = False,
    engine: EngineName = None,
    precision: Precision = None,
    policy: Annotated[
        Literal["edf", "slide", "fifo"],
        typer.Option(
            help="Whose chunk is next: the earliest deadline's, the begun slide's, or the first one's."
        ),
    ] = "edf",
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than loopback can be reached.")
    ] = LOOPBACK,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    watch: Annotated[
        Path | None,
        typer.Option(help="A folder whose new slides are taken without a deadline, once they are whole."),
    ] = None,
    simulate: Annotated[
        Path | None,
        typer.Option(
            metavar="TRACE",
            help="Only say what each policy makes of a CSV with arrival_s, cells, deadline_s.",
        ),
    ] = None,
    pace: Annotated[
        float, typer.Option(min=1e-6, max=60, help="With --simulate: seconds of a cell on one worker.")
    ] = 0.01,
    slide_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="With --simulate: seconds of a slide besides its cells.")
    ] = FIRST_SLIDE_S,
    workers: Annotated[int, typer.Option(min=1, max=4096, help="With --simulate: number of workers.")] = 1,
) -> None:
    """Score slides as they are submitted, the most urgent first; promise an end, and keep it.

    Ctrl-C or a crash loses nothing: started again, the service goes on at the next missing chunk.

    Examples:
    wsi serve -o results

    wsi serve -o results --watch incoming/

    wsi serve -o results --simulate trace.csv --pace 0.012 --workers 4
    """
    if simulate is not None:
        _simulate(simulate, Pace(pace, slide_seconds, workers))
        return
    if not isinstance(folder, LocalFolder):
        raise ConfigError(f"{folder} is no folder of this machine; a service keeps its queue in a local one")
    with held(folder.path / ".service" / "lock") as is_alone:
        if not is_alone:
            raise StoreError(f"{folder} is served already; submit slides there: wsi submit SLIDE -o {folder}")
        _serve(folder, model, kidneys, (engine, precision), policy, (host, port), watch)


def _serve(
    folder: LocalFolder,
    model: list[str] | None,
    kidneys: bool,
    engine_and_precision: tuple[str | None, str | None],
    policy: Policy,
    address: tuple[str, int],
    watch: Path | None,
) -> None:
    engine, precision = engine_and_precision
    settings = EngineConfig.model_validate({"engine": engine or "auto", "precision": precision or "auto"})
    runner, work = _kidneys(folder, model, settings) if kidneys else _lymph_nodes(folder, model, settings)
    governor = Governor(runner, policy)
    cell_s = _warm_up(runner)
    start = Pace(cell_s, FIRST_SLIDE_S, chunk_s=cell_s * CHUNK_CELLS)
    service = Service(folder.path, work, governor, start, ended=_tell)
    listed = len(service.expected())
    cards = runner.models.cards
    names = " and ".join(card.name for card in cards)
    out.print(f"model {names}; {runner.description}: {1 / cell_s:.0f} cells a second", markup=False)
    if any(card.demonstration for card in cards):
        out.print("a demonstration model, trained on phantoms: what it says of real tissue means nothing")
    if listed:
        out.print(f"goes on with {number_of(listed, 'promised slide')}", markup=False)
    _answer(service, folder, *address, None if watch is None else Watcher(watch, service))


def _tell(record: JobRecord) -> None:
    """Say what became of a slide."""
    text = f"{record.name}: {record.state}{': ' if record.reason else ''}{record.reason}"
    if record.state == "done" and record.deadline is not None and record.ended is not None:
        spare_s = record.deadline - record.ended
        text += f", {duration(abs(spare_s))} {'before' if spare_s >= 0 else 'AFTER'} its deadline"
    (out if record.state == "done" else err).print(text, markup=False)


def _answer(service: Service, folder: LocalFolder, host: str, port: int, watcher: Watcher | None) -> None:
    """Answer until Ctrl-C."""
    import uvicorn

    from pipelines.cli.view import listening

    host = LOOPBACK if host in ("localhost", "::1") else host
    with listening(host, port) as listener:
        port = listener.getsockname()[1]
        hosts = frozenset(f"{name}:{port}" for name in (LOOPBACK, "localhost")) if host == LOOPBACK else None
        token = secrets.token_urlsafe(24)
        url = f"http://{LOOPBACK if host == '0.0.0.0' else host}:{port}"
        write_private(folder.path / ADDRESS, json.dumps({"url": url, "token": token}))
        if host != LOOPBACK:
            err.print(f"{host}: whoever reaches this machine can ask; there is no encryption", markup=False)
        config = uvicorn.Config(
            application(service, token, hosts),
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=512,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
        )
        service.start()
        if watcher is not None:
            watcher.start()
        out.print(
            f"serves {folder} at {url}; wsi submit SLIDE -o {folder} submits, Ctrl-C ends it", markup=False
        )
        out.print("for research use only")
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            pass  # this is how it ends
        finally:
            if watcher is not None:
                watcher.stop()
            out.print("ends after the chunks that are under way")
            service.stop()
            folder.delete(ADDRESS)


def _warm_up(engine: Engine) -> float:
    """Seconds of a patch of this engine on this machine."""
    side = engine.models.card.patch_px
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    block = PatchBlock(pixels, np.zeros((WARM_UP, 2), np.int64), side)
    engine.expect(WARM_UP)
    list(engine.score([block]))
    began = time.monotonic()
    list(engine.score([block]))
    return (time.monotonic() - began) / WARM_UP


def _cells(card: ModelCard, tissue: TissueConfig) -> Callable[[SlideRow], int]:
    """What counts the cells with tissue of a slide, as a model reads it."""

    def cells(row: SlideRow) -> int:
        with row.source.open() as slide:
            plan = plan_read(
                slide, card.patch_px, card.stride_px, card.spacing_um, tolerance=card.spacing_tolerance
            )
            return len(make_grid(slide.size, plan, find_tissue(slide, tissue)))

    return cells


def _lymph_nodes(folder: LocalFolder, model: list[str] | None, settings: EngineConfig) -> tuple[Engine, Work]:
    from pipelines.camelyon16.read.page import write_tables
    from pipelines.camelyon16.read.results import earlier_results
    from pipelines.camelyon16.read.score import ScoreJob, run_fingerprint
    from pipelines.cli.score import RunConfig

    engine = load_engine(find_models(model or [DEFAULT_MODEL]), settings)
    cfg = RunConfig(engine=settings)
    fingerprint = run_fingerprint(engine, cfg.score)
    refuse_other_run(folder, fingerprint)
    models = [
        {"name": c.name, "sha256": c.sha256, "demonstration": c.demonstration} for c in engine.models.cards
    ]
    record = run_record(cfg.model_dump(mode="json"), models, engine.description, fingerprint)
    job = ScoreJob(folder.absolute(), engine.spec, cfg.score)

    def sum_up(failures: Sequence[Failure]) -> None:
        _sum_up(RunFolder(folder, record, earlier_results, write_tables), failures)

    return engine, Work(job, _cells(engine.models.card, cfg.score.tissue), sum_up)


def _kidneys(folder: LocalFolder, model: list[str] | None, settings: EngineConfig) -> tuple[Engine, Work]:
    from models.engines.boxes import BoxEngine
    from models.engines.contract import find_folder
    from pipelines.cli.renal import DETECTOR, FIELDS
    from pipelines.renal.read.reading import Readers, RenalConfig, run_fingerprint
    from pipelines.renal.read.run import ReportJob, earlier_reports
    from pipelines.renal.read.summary import write_results

    if model is not None and len(model) > 1:
        raise ConfigError("kidneys are read by one detector; give one --model")
    engine = load_engine(find_models([FIELDS]), settings)
    detector = BoxEngine(find_folder((model or [DETECTOR])[0]), EngineConfig())
    cfg = RenalConfig()
    readers = Readers(engine, detector)
    fingerprint = run_fingerprint(readers, cfg)
    refuse_other_run(folder, fingerprint)
    described = f"fields: {engine.description}; capillaries: {detector.description}"
    record = run_record(cfg.model_dump(mode="json"), readers.models, described, fingerprint)
    record["demonstration"] = [m["name"] for m in readers.models if m["demonstration"]]
    job = ReportJob(folder.absolute(), engine.spec, detector.spec, cfg)

    def sum_up(failures: Sequence[Failure]) -> None:
        _sum_up(RunFolder(folder, record, earlier_reports, write_results), failures)

    return engine, Work(job, _cells(engine.models.card, DENSITY), sum_up, predictable=False)


def _sum_up(run: RunFolder[Any], failures: Sequence[Failure]) -> None:
    """Write the tables: what failed now, and all results that are there."""
    names = [failure.name for failure in failures]
    with run.work(names):
        run.sum_up(FINISHED, run.earlier(run.out, str(run.record["settings_fingerprint"]), names), failures)


def submit(
    slides: Annotated[
        list[str], typer.Argument(metavar="SLIDES", help="Slides, folders of slides, or a table.")
    ],
    folder: Out,
    deadline: Annotated[
        str | None, typer.Option(metavar="TIME", help="How soon, such as 90s, 10m, 2h or 1d.")
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="CLOCK", help="Until when, such as 14:30, or 2026-12-24T14:30.")
    ] = None,
    priority: Annotated[
        Literal["routine"] | None, typer.Option(help="Without a deadline: when nothing more urgent waits.")
    ] = None,
    or_later: Annotated[
        bool, typer.Option("--or-later", help="Where the deadline cannot be kept, take it without a promise.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the slides are done.")] = False,
    mpp: Mpp = None,
) -> None:
    """Submit slides to the service of a results folder; each gets a promised end, or is refused with the reason.

    Examples:
    wsi submit frozen.svs -o results --deadline 10m

    wsi submit archive/ -o results --priority routine

    wsi submit frozen.svs -o results --by 14:30 --or-later --wait
    """
    if sum(value is not None for value in (deadline, by, priority)) != 1:
        raise ConfigError("say how urgent it is: one of --deadline, --by, or --priority routine")
    until = None if by is None else _moment(by, datetime.now().astimezone())
    within = None if deadline is None else _seconds(deadline)
    address = _address(folder)
    keys, refused = [], False
    for row in gather(slides, mpp=mpp, allow_anisotropic=False):
        if row.source.is_url:
            raise ConfigError(f"{row.source.label} is a URL; a service takes files of its own machine")
        if row.mask is not None:
            raise ConfigError(
                f"{row.mask} is a mask of your own, which a service does not take; use wsi score"
            )
        body = {"slide": str(Path(row.source.path).absolute()), "or_later": or_later, "mpp": row.source.mpp}
        body |= {"within_s": within, "by": until}
        try:
            job = _ask(address, "POST", "/api/jobs", body)
        except RefusedError as error:
            err.print(f"{row.source.label}: not taken: {error}", markup=False)
            refused = True
            continue
        keys.append(job["id"])
        out.print(f"{job['name']}: {_promise(job)}", markup=False)
    failed = wait and not _all_done(address, keys)
    raise typer.Exit(1 if refused or failed else 0)


def _promise(job: dict[str, Any]) -> str:
    if not _is_open(job):
        return f"submitted before: {job['state']}"
    if job["promised"] is None:
        due = f" (deadline {_clock(job['deadline'])})" if job["deadline"] else ""
        return f"taken without a promise{due}; {job['cells']} cells"
    return f"promised by {_clock(job['promised'])} (deadline {_clock(job['deadline'])}); {job['cells']} cells"


def _all_done(address: dict[str, str], keys: Sequence[str]) -> bool:
    """Wait until jobs have ended; whether all are done."""
    jobs: dict[str, dict[str, Any]] = {}
    with progress("cells") as tick:
        while len(jobs) < len(keys) or any(_is_open(job) for job in jobs.values()):
            for key in keys:
                if key not in jobs or _is_open(jobs[key]):
                    jobs[key] = _ask(address, "GET", f"/api/jobs/{key}")
            tick(sum(map(_cells_done, jobs.values())), sum(job["cells"] for job in jobs.values()))
            time.sleep(0.5)
    for job in jobs.values():
        text = f"{job['name']}: {job['state']}{': ' if job['reason'] else ''}{job['reason']}"
        (out if job["state"] == "done" else err).print(text, markup=False)
    return all(job["state"] == "done" for job in jobs.values())


def _is_open(job: dict[str, Any]) -> bool:
    return job["state"] in OPEN


def _cells_done(job: dict[str, Any]) -> int:
    if not _is_open(job):
        return int(job["cells"])
    return int(job["progress"][0]) if job["progress"] else 0


def queue(
    folder: Out,
    cancel: Annotated[str | None, typer.Option(metavar="ID", help="Cancel a job.")] = None,
) -> None:
    """Show what the service of a results folder works on, what waits, and when each is promised and expected.

    Examples:
    wsi queue -o results

    wsi queue -o results --cancel 3f2a77c01be94d10
    """
    address = _address(folder)
    if cancel is not None:
        job = _ask(address, "DELETE", f"/api/jobs/{quote(cancel, safe='')}")
        out.print(f"{job['name']}: {job['state']}", markup=False)
        return
    answer = _ask(address, "GET", "/api/jobs")
    rows = [("id", "slide", "state", "cells", "deadline", "promised", "expected", "ended")]
    for job in answer["jobs"]:
        cells = f"{job['progress'][0]} of {job['progress'][1]}" if job["progress"] else str(job["cells"])
        times = [_clock(job[key]) for key in ("deadline", "promised", "expected", "ended")]
        rows.append((job["id"], job["name"], job["state"], cells, *times))
    _print_table(rows)
    left = [job["expected"] - answer["now"] for job in answer["jobs"] if job["expected"] is not None]
    counts = number_of(sum(map(_is_open, answer["jobs"])), "slide")
    ends = f"; the promised ones end in {duration(max(left))}" if left else ""
    out.print(f"{counts} not done{ends}", markup=False)


def _address(folder: Folder) -> dict[str, str]:
    """Where the server of a results folder answers, and its token.

    Raises:
        ConfigError: no server runs there, as far as the folder tells.
    """
    try:
        value = folder.read_json(ADDRESS)
        return {"url": str(value["url"]), "token": str(value["token"])}
    except PermissionError as error:
        raise ConfigError(f"{folder.at(ADDRESS)} is another user's, who alone can submit slides") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"no service runs for {folder}; start one: wsi serve -o {folder}") from error


def _ask(
    address: dict[str, str], method: str, path: str, body: Any = None, *, timeout: float = TIMEOUT_S
) -> dict[str, Any]:
    """The server's answer.

    Raises:
        RefusedError: it refuses, and says why.
        ConfigError: it does not answer.
    """
    if not re.match(r"https?://", address["url"]):
        raise ConfigError(f"{address['url']!r} is no address of a server; start wsi serve again")
    request = urllib.request.Request(
        address["url"] + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {address['token']}",
            "Content-Type": "application/json",
            "X-Slidewright-Api": str(API),
        },
    )
    try:
        with _DIRECT.open(request, timeout=timeout) as response:
            return cast(dict[str, Any], json.load(response))
    except urllib.error.HTTPError as error:
        try:
            facts = json.load(error)
        except ValueError:
            facts = {}
        sentence = str(facts.get("error", f"the server answers {error.code}"))
        if facts.get("earliest"):
            sentence += f" (at {_clock(float(facts['earliest']))})"
        raise RefusedError(sentence, error.code, facts.get("earliest")) from error
    except (OSError, ValueError, HTTPException) as error:
        raise ConfigError(
            f"{address['url']} does not answer ({error}); is wsi serve still running?"
        ) from error


def _seconds(text: str) -> float:
    number_and_unit = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if number_and_unit is None or float(number_and_unit[1]) <= 0:
        raise ConfigError(f"--deadline {text} is no time; write 90s, 10m, 2h or 1d")
    return float(number_and_unit[1]) * UNITS[number_and_unit[2]]


def _moment(text: str, now: datetime) -> float:
    """A time of today, or of tomorrow where it has passed, or a date and time: seconds since 1970."""
    try:
        if re.fullmatch(r"\d{1,2}:\d{2}", text):
            hour, minute = map(int, text.split(":"))
            moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return (moment if moment > now else moment + timedelta(days=1)).timestamp()
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--by {text} is no time; write 14:30, or 2026-12-24T14:30") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=now.tzinfo)
    if moment <= now:
        raise ConfigError(f"--by {text} lies in the past; it is {now:%Y-%m-%dT%H:%M} now")
    return moment.timestamp()


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    moment = datetime.fromtimestamp(seconds)
    return f"{moment:%H:%M:%S}" if moment.date() == datetime.now().date() else f"{moment:%m-%d %H:%M}"


def _simulate(trace: Path, pace: Pace) -> None:
    arrivals = read_trace(trace)
    rows = [
        (
            "policy",
            "taken",
            "late",
            "late or refused",
            "late by, s",
            "99 % below, s",
            "slides/h",
            "busy",
            "broken",
        )
    ]
    for name, f in compared(arrivals, pace, batch=8, chunk=CHUNK_CELLS).items():
        rows.append((name, *_row(f)))
    _print_table(rows)
    out.print(
        f"{number_of(len(arrivals), 'slide')} in virtual time, {pace.cell_s:g} s a cell, {pace.slide_s:g} s a slide, "
        f"{number_of(pace.workers, 'worker')}; each policy adds one part to the one above",
        markup=False,
    )
    out.print(
        "late: of those with a deadline that were taken; late by: their median; broken: ended later than promised, by "
        "a tenth of the promised time",
        markup=False,
    )


def _row(f: Figures) -> tuple[str, str, str, str, str, str, str, str]:
    taken, late, missed = (f"{share:.1%}" for share in (f.taken, f.late_taken, f.late_all))
    median, most = (f"{seconds:.1f}" for seconds in f.tardiness_s)
    return taken, late, missed, median, most, f"{f.slides_h:.1f}", f"{f.busy:.1%}", f"{f.broken:.1%}"


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns; they are not cut where the terminal is narrow."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)
