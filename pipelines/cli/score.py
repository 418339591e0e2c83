"""``wsi score``: slides in, heatmaps, lesions and pictures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from models.engines import Engine, EngineConfig, find_models, load_engine
from pipelines.camelyon16.page import write_page
from pipelines.camelyon16.preview import count_text
from pipelines.camelyon16.results import SlideResult, earlier_results, scores_csv
from pipelines.camelyon16.score import ScoreConfig, score_slide, settings_fingerprint
from pipelines.cli.console import err, out, progress
from pipelines.cli.options import DEFAULT_MODEL, Anisotropic, ModelNames, Mpp, Out
from pipelines.cohort import Failure, gather, refuse_other_run, run_cohort, write_run
from pipelines.config import load_config, parse_config
from pipelines.provenance import run_record
from wsi.config import Config
from wsi.errors import ConfigError
from wsi.files import write_text
from wsi.manifest import SlideRow
from wsi.user_mask import PICTURES


class RunConfig(Config):
    """The file that ``--config`` reads."""

    score: ScoreConfig = ScoreConfig()
    engine: EngineConfig = EngineConfig()


def score(
    slides: Annotated[list[str], typer.Argument(help="Slides, folders, URLs or a manifest (.csv).")],
    folder: Out,
    model: ModelNames = None,
    positive: Annotated[
        str | None,
        typer.Option("--class", help="Which of the model's classes to find; default is its own choice."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with 'score' and 'engine'.")] = None,
    mpp: Mpp = None,
    stride: Annotated[
        Literal["64", "128", "256"] | None, typer.Option(help="Pixels from cell to cell.")
    ] = None,
    orientations: Annotated[
        Literal["1", "8"] | None, typer.Option(help="8 averages flips and turns.")
    ] = None,
    engine: Annotated[
        Literal["auto", "openvino", "torch"] | None, typer.Option(help="What runs the model.")
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"] | None, typer.Option(help="Of the network.")
    ] = None,
    tissue: Annotated[
        Literal["otsu-saturation", "liu2017", "ncrf", "density"] | None,
        typer.Option(help="How tissue is found; density suits immunostains."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Your own tissue mask, or a folder with one per slide (same stem).")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="Lowest score of a lesion.")] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Read level 0 as it is, whatever its spacing.")
    ] = False,
    allow_anisotropic: Anisotropic = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results made otherwise.")] = False,
) -> None:
    """Score slides for metastases: heatmap, ranked lesions, GeoJSON for QuPath, and a picture of each.

    Run the same command again after an interruption: it goes on where it stopped.
    """
    base = load_config(config, RunConfig) if config else RunConfig()
    cfg = _override(
        base,
        score={"stride": stride and int(stride), "native": native or None, "min_tissue": None},
        engine={"engine": engine, "precision": precision, "orientations": orientations and int(orientations)},
        tissue=tissue,
        threshold=threshold,
    )
    rows = _with_masks(gather(slides, mpp=mpp, allow_anisotropic=allow_anisotropic), mask)
    models = find_models(model or [DEFAULT_MODEL])
    if positive is not None:
        models = models.with_positive(positive)
    complete = Run(rows, load_engine(models, cfg.engine), cfg, folder, overwrite).go()
    raise typer.Exit(0 if complete else 1)


def _override(
    base: RunConfig,
    *,
    score: dict[str, Any],
    engine: dict[str, Any],
    tissue: str | None,
    threshold: float | None,
) -> RunConfig:
    """The file's settings with those from the command line over them."""
    value = base.model_dump(mode="json")
    value["score"] |= {k: v for k, v in score.items() if v is not None}
    value["engine"] |= {k: v for k, v in engine.items() if v is not None}
    if tissue is not None:
        value["score"]["tissue"]["method"] = tissue
    if threshold is not None:
        value["score"]["lesions"]["threshold"] = threshold
    return parse_config("options", value, RunConfig)


def _with_masks(rows: list[SlideRow], mask: Path | None) -> list[SlideRow]:
    if mask is None:
        return rows
    if mask.is_file() and len(rows) > 1:
        raise ConfigError(f"{mask} is one mask, for {len(rows)} slides; give a folder with a mask for each")
    return [SlideRow(r.source, _mask_of(r, mask), r.truth, r.label, r.split) for r in rows]


def _mask_of(row: SlideRow, mask: Path) -> Path:
    if mask.is_file():
        return mask
    slide = Path(row.source.path).resolve()
    for stem in (row.source.name, f"{row.source.name}_mask"):
        for suffix in (*PICTURES, ".geojson", ".json", ".xml"):
            found = mask / f"{stem}{suffix}"
            if found.is_file() and found.resolve() != slide:
                return found
    raise ConfigError(
        f"{mask} holds no mask for {row.source.path}; name it {row.source.name}.png, .geojson or .xml"
    )


@dataclass
class Run:
    """One ``wsi score``: slides, engine and where the results go."""

    rows: list[SlideRow]
    engine: Engine
    cfg: RunConfig
    folder: Path
    overwrite: bool

    def go(self) -> bool:
        """Score everything; whether every slide was scored to the last cell."""
        if not self.overwrite:
            refuse_other_run(self.folder, self._fingerprint())
        count = f"{len(self.rows)} slide{'' if len(self.rows) == 1 else 's'}"
        cards = self.engine.models.cards
        names = " and ".join(card.name for card in cards)
        out.print(f"{count}; model {names}; {self.engine.description}", markup=False)
        if any(card.demonstration for card in cards):
            out.print("a demonstration model, trained on phantoms: its scores on real tissue mean nothing")
        write_run(self.folder, self._record(), "running", self._earlier(), [])
        outcome = run_cohort(self.rows, self._work, self._summarise, finished=_say)
        out.print(f"{self.folder / 'index.html'} shows them; for research use only", markup=False)
        return outcome.complete

    def _work(self, row: SlideRow, name: str, index: int) -> SlideResult:
        with progress(f"{name} ({index + 1} of {len(self.rows)})", transient=True) as tick:
            return score_slide(
                row,
                name,
                self.engine,
                self.folder / name,
                self.cfg.score,
                overwrite=self.overwrite,
                progress=lambda done, total: tick(done, total, "cells"),
            )

    def _record(self) -> dict[str, Any]:
        cards = self.engine.models.cards
        models = [{"name": c.name, "sha256": c.sha256, "demonstration": c.demonstration} for c in cards]
        return run_record(
            self.cfg.model_dump(mode="json"), models, self.engine.description, self._fingerprint()
        )

    def _fingerprint(self) -> str:
        return settings_fingerprint(self.engine, self.cfg.score)

    def _earlier(self, results: Sequence[SlideResult] = ()) -> list[SlideResult]:
        """Slides that earlier commands with the same settings scored into this folder."""
        return earlier_results(self.folder, self._fingerprint(), [result.name for result in results])

    def _summarise(self, state: str, results: Sequence[SlideResult], failures: Sequence[Failure]) -> None:
        record = self._record()
        every = sorted([*self._earlier(results), *results], key=lambda r: r.name)
        write_run(self.folder, record, state, every, failures)
        write_text(self.folder / "slide_scores.csv", scores_csv(every))
        write_page(self.folder / "index.html", every, failures, record)


def _say(result: SlideResult | Failure) -> None:
    if isinstance(result, Failure):
        err.print(f"{result.name}: failed: {result.reason}", markup=False)
        return
    if result.score is None:
        err.print(f"{result.name}: {result.note}", markup=False)
        return
    reading = f", {result.confidence}" if result.confidence else ""
    text = f"{result.name}: score {result.score:.3f}{reading}, {count_text(result)}"
    out.print(text, markup=False)
    if result.note:
        err.print(f"{result.name}: {result.note}", markup=False)
