"""``wsi verify``: it checks whether results, and the slides they were made from, have changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.console import err, out, progress
from pipelines.runs.run_folder import KEPT, RUNNING
from wsi.errors import StoreError, WsiError
from wsi.files import changed_files, read_record
from wsi.slides.source import SlideSource


def verify(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="The --out of wsi score or wsi renal report, or one slide's folder."
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
    """Compare every file of finished results with the sizes and hashes that were noted when it was written.

    The exit code is 1 if anything changed. The command that made the results makes again what changed.

    Examples:
    wsi verify results

    wsi verify results --slides
    """
    records = (
        [folder / "slide.json"] if (folder / "slide.json").is_file() else sorted(folder.glob("*/slide.json"))
    )
    records += sorted(folder.glob("**/reviewed/files.json"))
    if not records and not (folder / "run.json").is_file():
        raise StoreError(f"{folder} holds no finished slide; give the --out of wsi score or wsi renal report")
    problems: list[str] = []
    count = 0
    with progress("slides", transient=True) as tick:
        for done, path in enumerate(records):
            tick(done, len(records), path.parent.name)
            files, changes = verify_slide(path, slides=slides)
            count += files
            problems += changes
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


def verify_run(folder: Path) -> tuple[int, list[str]]:
    """The number of tables and pages that ``run.json`` names, and a sentence for each one that has changed.

    There is also a sentence for each listed slide whose result is missing, or differs from its entry.
    """
    path = folder / "run.json"
    if not path.exists():
        return 0, []
    try:
        value = json.loads(path.read_bytes())
        record = read_record({"files": value.get("files", {})})
        problems = [f"{folder / name}: {change}" for name, change in changed_files(folder, record).items()]
        for entry in value["slides"]:
            problems += _differences(folder / str(entry["name"]), entry, str(value["settings_fingerprint"]))
        listed = {str(entry["name"]) for entry in value["slides"]}
        for slide_file in sorted(folder.glob("*/slide.json")):
            if slide_file.parent.name not in listed and value["state"] != RUNNING:
                problems.append(f"{slide_file.parent} is not listed in run.json; make it again, or remove it")
        if value["state"] == RUNNING:
            problems.append(f"{path}: a command works in the folder, or was killed; run it again")
        return len(record), problems
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return 0, [f"{path} is broken ({error!r}); run the command that made it again"]


def _differences(folder: Path, entry: dict[str, Any], settings: str) -> list[str]:
    """Sentences about the differences between a slide's own files and its entry in ``run.json``."""
    path = folder / "slide.json"
    if not path.exists():
        return [f"{path} is missing, and run.json lists the slide"]
    try:
        facts = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return []  # `verify_slide` has said already that it is broken
    report = folder / "report.json"
    if report.exists():
        facts |= json.loads(report.read_bytes())["result"]
    differences = []
    for key in entry.keys() & facts.keys():
        if key in ("note", "warnings") and KEPT in str(entry[key]):
            continue  # the note was added in the tables only
        value = len(facts[key]) if key == "lesions" else facts[key]
        if value != entry[key]:
            differences.append(f"{path.parent}: {key} is {value!r}, and {entry[key]!r} in run.json")
    if facts.get("settings_fingerprint") != settings:
        differences.append(
            f"{path.parent} was made with other settings than run.json says; make it again, or remove it"
        )
    return sorted(differences)


def verify_slide(path: Path, *, slides: bool) -> tuple[int, list[str]]:
    """The number of files that a record names, and a sentence for each one that has changed.

    Args:
        path: ``slide.json`` or ``files.json``.
        slides: whether to compare the slide's file, too.
    """
    try:
        value = json.loads(path.read_bytes())
        record = read_record(value)
        identity = str(value.get("slide_identity", ""))
        source = SlideSource(str(value.get("path", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return 0, [
            f"{path} is broken, or of a version that kept no record of files ({error!r}); make it again"
        ]
    problems = [
        f"{path.parent / name}: {change}" for name, change in changed_files(path.parent, record).items()
    ]
    if slides and identity:
        try:
            if source.read_identity() != identity:
                problems.append(f"{source.label}: the slide is not the one that was read")
        except WsiError as error:
            problems.append(str(error))
    return len(record), problems
