"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Mpp = Annotated[
    float | None,
    typer.Option("--mpp", min=0.01, max=1000, help="um per pixel of level 0; overrides what the slide says."),
]
Anisotropic = Annotated[
    bool,
    typer.Option("--allow-anisotropic", help="Accept pixels whose x and y differ by over 5 %; use the mean."),
]
ModelNames = Annotated[
    list[str] | None,
    typer.Option("--model", help="Name of a model that ships, or a folder; several are averaged."),
]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]

DEFAULT_MODEL = "lymph-node-demo"
