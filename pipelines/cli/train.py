"""``wsi train``: the published recipes on a user's slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.console import out, progress
from pipelines.config import load_config
from pipelines.provenance import code_hash, commit, libraries, machine, version
from wsi.errors import ConfigError, StoreError
from wsi.files import write_json
from wsi.manifest import read_manifest

app = typer.Typer(no_args_is_help=True, help="Train networks on slides with truth.")


@app.callback()
def _group() -> None:
    """Train networks on slides with truth."""


@app.command("classifier")
def classifier(
    config: Annotated[Path, typer.Argument(help="YAML recipe, such as configs/camelyon16.yaml.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the model and metrics.csv.")],
    slides: Annotated[Path | None, typer.Option(help="slides.csv; overrides the recipe's.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="torchvision's ImageNet weight file, or 'imagenet' to download it; at width 1."),
    ] = None,
    examples: Annotated[int | None, typer.Option(help="Patches to train on; overrides the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Overrides the recipe's.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that is in OUT.")] = False,
) -> None:
    """Train the patch classifier; the best network by validation AUC is kept in OUT/model."""
    from models.train_classifier import Progress, TrainConfig, train  # torch takes seconds to load

    overrides = {"slides": slides, "init": init, "examples": examples, "seed": seed}
    cfg = load_config(config, TrainConfig, overrides)
    if cfg.slides is None:
        raise ConfigError(f"{config} names no slides; pass --slides slides.csv")
    if (folder / "model").exists() and not overwrite:
        raise StoreError(f"{folder / 'model'} is there already; choose another --out, or pass --overwrite")
    rows = read_manifest(cfg.slides)
    code = f"slidewright {version()}, code {code_hash()}"
    record: dict[str, Any] = {"config": cfg.model_dump(mode="json"), "code": code_hash(), "commit": commit()}
    write_json(folder / "run.json", record | {"libraries": libraries(), "machine": machine()})
    with progress("training") as tick:

        def report(p: Progress) -> None:
            tick(p.examples, p.total, f"loss {p.loss:.3f}, {p.examples_per_s:.0f} examples/s")
            if p.auc is not None:
                out.print(f"{p.examples} examples: loss {p.loss:.4f}, validation AUC {p.auc:.4f}")

        best = train(rows, cfg, folder, code_version=code, report=report, say=lambda text: out.print(text))
    out.print(f"best validation AUC {best:.4f}; the model is in {folder / 'model'}", markup=False)
