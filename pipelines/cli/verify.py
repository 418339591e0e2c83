"""``wsi verify``: whether results, and the slides they were made from, are as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import err, out, progress
from wsi.errors import StoreError, WsiError
from wsi.files import changed_files, read_record
from wsi.source import SlideSource


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
    if not records:
        raise StoreError(f"{folder} holds no finished slide; give the --out of wsi score or wsi renal report")
    problems: list[str] = []
    count = 0
    with progress("slides", transient=True) as tick:
        for done, path in enumerate(records):
            tick(done, len(records), path.parent.name)
            files, found = verify_slide(path, slides=slides)
            count += files
            problems += found
    problems += _gone(folder)
    for sentence in problems:
        err.print(sentence, markup=False)
    what = "file and slide" if slides else "file"
    summary = f"{len(problems)} changed" if problems else f"every {what} is as it was"
    out.print(
        f"{folder}: {count} files of {len(records)} result{'' if len(records) == 1 else 's'}; {summary}",
        markup=False,
    )
    raise typer.Exit(1 if problems else 0)


def _gone(folder: Path) -> list[str]:
    """A sentence for each slide that ``run.json`` lists and whose result is not there, or says something else."""
    path = folder / "run.json"
    if not path.exists():
        return []
    problems = []
    try:
        for entry in json.loads(path.read_bytes())["slides"]:
            own = folder / str(entry["name"]) / "slide.json"
            if not own.exists():
                problems.append(f"{own} is missing, and run.json lists the slide")
                continue
            noted = json.loads(own.read_bytes())
            problems += [
                f"{own}: {key} is {noted[key]!r}, and {value!r} in run.json"
                for key, value in entry.items()
                if key in ("score", "confidence") and noted.get(key) != value
            ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{path} is broken ({error!r}); run the command that made it again")
    return problems


def verify_slide(path: Path, *, slides: bool) -> tuple[int, list[str]]:
    """How many files a record names, and a sentence for each that is not as it was.

    Args:
        path: ``slide.json`` or ``files.json``.
        slides: also compare the slide's file.
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
