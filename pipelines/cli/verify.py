"""``wsi verify``: it checks whether results, and the slides they were made from, have changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from models.card import CARD, TORCHSCRIPT, WEIGHTS, card_in, hash_file
from models.engines.contract import find_folder, shipped
from pipelines.camelyon16.read.decisions import signed_truth
from pipelines.cli.console import err, out, progress
from pipelines.renal.read.decisions import signed_report
from pipelines.runs.review_log import check_log
from pipelines.runs.run_folder import KEPT, RUNNING
from wsi.errors import ModelError, StoreError, WsiError
from wsi.files import read_record
from wsi.results.folder import Folder, LocalFolder, folder_at
from wsi.slides.source import SlideSource

MODEL_FILES = (CARD, WEIGHTS, TORCHSCRIPT)  # any of them makes a folder a model


def verify(
    folder: Annotated[
        Folder,
        typer.Argument(
            metavar="OUT|MODEL",
            parser=folder_at,
            help="The --out of wsi score or wsi renal report, one slide's folder, or a model: a name or a folder.",
        ),
    ],
    slides: Annotated[
        bool,
        typer.Option(
            "--slides",
            help="Also read every slide's file again, and compare it with the one that was scored.",
        ),
    ] = False,
) -> None:
    """Compare every file of finished results, or of a model, with the hashes that were noted when it was written.

    The exit code is 1 if anything changed. The command that made the results makes again what changed.

    Examples:
    wsi verify results

    wsi verify lymph-node-10x

    wsi verify results --slides
    """
    model = _model_of(folder)
    if model is not None:
        raise typer.Exit(0 if _verify_model(model) else 1)
    if not folder.exists():
        raise StoreError(
            f"{folder} is neither a folder nor a model that ships; give the --out of a run, or a model"
        )
    records = ["slide.json"] if folder.exists("slide.json") else _records(folder, "slide.json")
    records += [name for name in folder.files() if name.endswith("reviewed/files.json")]
    if not records and not folder.exists("run.json"):
        raise StoreError(f"{folder} holds no finished slide; give the --out of wsi score or wsi renal report")
    problems: list[str] = []
    count = 0
    with progress("slides", transient=True) as tick:
        for done, name in enumerate(records):
            *above, file = name.split("/")
            tick(done, len(records), above[-1] if above else folder.name)
            place = folder.inside("/".join(above))
            files, changes = verify_slide(place, file, slides=slides)
            count += files
            problems += changes + (_verify_log(place) if file == "slide.json" else [])
    files, changes = verify_run(folder)
    count += files
    problems += changes
    for sentence in problems:
        err.print(sentence, markup=False)
    unit = "noted file and slide" if slides else "noted file"
    summary = f"{len(problems)} changed" if problems else f"every {unit} is as it was"
    out.print(
        f"{folder}: {count} files of {len(records)} result{'' if len(records) == 1 else 's'}; {summary}",
        markup=False,
    )
    raise typer.Exit(1 if problems else 0)


def _verify_log(folder: Folder) -> list[str]:
    """A sentence if the log of a slide's review was changed after it was written, or after the report was signed."""
    signed = signed_report(folder) if folder.exists("report.json") else signed_truth(folder)
    return check_log(folder, *signed)


def _model_of(folder: Folder) -> Path | None:
    """The folder of a model, if this is one, or has the name of one that ships."""
    if not isinstance(folder, LocalFolder):
        return None
    if folder.exists():
        return folder.path if any(folder.exists(name) for name in MODEL_FILES) else None
    return find_folder(str(folder)) if str(folder) in shipped() else None


def _verify_model(folder: Path) -> bool:
    """Print whether a model's weights are those that its card names."""
    torchscript = folder / TORCHSCRIPT
    if torchscript.is_file():
        raise ModelError(
            f"{folder} is a model in WSInfer's form, which notes no hashes; compare its sha256 "
            f"{hash_file(torchscript)} with what its maker states"
        )
    try:
        card = card_in(folder)
    except ModelError as error:
        err.print(str(error), markup=False)
        return False
    out.print(f"{folder}: the weights are those that the card names, sha256 {card.sha256}", markup=False)
    digest = hash_file(folder / CARD)
    out.print(
        f"nothing vouches for the card itself, sha256 {digest}: compare that with what its maker states"
    )
    return True


def _records(folder: Folder, file: str) -> list[str]:
    return [f"{name}/{file}" for name in folder.holding(file)]


def verify_run(folder: Folder) -> tuple[int, list[str]]:
    """The number of tables and pages that ``run.json`` names, and a sentence for each one that has changed.

    There is also a sentence for each listed slide whose result is missing, or differs from its entry.
    """
    path = folder.at("run.json")
    if not folder.exists("run.json"):
        return 0, []
    try:
        value = folder.read_json("run.json")
        record = read_record({"files": value.get("files", {})})
        problems = [f"{folder.at(name)}: {change}" for name, change in folder.changes(record).items()]
        for entry in value["slides"]:
            problems += _differences(
                folder.inside(str(entry["name"])), entry, str(value["settings_fingerprint"])
            )
        listed = {str(entry["name"]) for entry in value["slides"]}
        for name in folder.holding("slide.json"):
            if name not in listed and value["state"] != RUNNING:
                problems.append(f"{folder.at(name)} is not listed in run.json; make it again, or remove it")
        if value["state"] == RUNNING:
            problems.append(f"{path}: a command works in the folder, or was killed; run it again")
        return len(record), problems
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return 0, [f"{path} is broken ({error!r}); run the command that made it again"]


def _differences(folder: Folder, entry: dict[str, Any], settings: str) -> list[str]:
    """Sentences about the differences between a slide's own files and its entry in ``run.json``."""
    if not folder.exists("slide.json"):
        return [f"{folder.at('slide.json')} is missing, and run.json lists the slide"]
    try:
        facts = folder.read_json("slide.json")
    except (OSError, ValueError, RecursionError):
        return []  # `verify_slide` has said already that it is broken
    if folder.exists("report.json"):
        facts |= folder.read_json("report.json")["result"]
    differences = []
    for key in entry.keys() & facts.keys():
        if key in ("note", "warnings") and KEPT in str(entry[key]):
            continue  # the note was added in the tables only
        value = len(facts[key]) if key == "lesions" else facts[key]
        if value != entry[key]:
            differences.append(f"{folder}: {key} is {value!r}, and {entry[key]!r} in run.json")
    if facts.get("settings_fingerprint") != settings:
        differences.append(
            f"{folder} was made with other settings than run.json says; make it again, or remove it"
        )
    return sorted(differences)


def verify_slide(folder: Folder, file: str, *, slides: bool) -> tuple[int, list[str]]:
    """The number of files that a record names, and a sentence for each one that has changed.

    Args:
        folder: of a result.
        file: ``slide.json`` or ``files.json`` in it.
        slides: whether to compare the slide's file, too.
    """
    try:
        value = folder.read_json(file)
        record = read_record(value)
        identity = str(value.get("slide_identity", ""))
        source = SlideSource(str(value.get("path", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return 0, [
            f"{folder.at(file)} is broken, or of a version that kept no record of files ({error!r}); make it again"
        ]
    problems = [f"{folder.at(name)}: {change}" for name, change in folder.changes(record).items()]
    if slides and identity:
        try:
            if source.read_identity() != identity:
                problems.append(f"{source.label}: the slide is not the one that was read")
        except WsiError as error:
            problems.append(str(error))
    return len(record), problems
