"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Mpp = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        min=0.01,
        max=1000,
        help="Micrometres per pixel of level 0.",
        show_default="what the slide's file says",
    ),
]
Anisotropic = Annotated[
    bool,
    typer.Option(
        "--allow-anisotropic",
        help="Accept pixels whose width and height differ by over 5 %, and use the mean.",
    ),
]
DEFAULT_MODEL = "lymph-node-demo"
ModelNames = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="A model that ships (wsi models list), or a model's folder; scores of several are averaged.",
        show_default=DEFAULT_MODEL,
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out", "-o", metavar="OUT", help="The folder for the results; it is made if it is not there."
    ),
]
