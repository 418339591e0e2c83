"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from models.card import DEFAULT_MODEL, ModelCard
from pipelines.cli.console import err
from wsi.errors import ConfigError
from wsi.results.folder import Folder, folder_at

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
PatchMpp = Annotated[
    float | None,
    typer.Option(
        "--mpp",
        min=0.01,
        max=1000,
        help="Micrometres per pixel of the patches, which are then brought to the model's spacing.",
        show_default="the model's own",
    ),
]
Orientations = Annotated[
    Literal["1", "8"] | None,
    typer.Option(help="With 8, scores are the mean over all flips and turns.", show_default="1"),
]
EngineName = Annotated[
    Literal["auto", "openvino", "torch"] | None,
    typer.Option(help="The library that runs the model.", show_default="auto: torch on a GPU, else openvino"),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"] | None,
    typer.Option(
        help="The numbers that the network computes in.",
        show_default="auto: fp16 on a GPU, bf16 on a CPU that has it",
    ),
]
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
Results = Annotated[
    Folder, typer.Argument(metavar="RESULTS", parser=folder_at, help="The --out of wsi score.")
]
Reports = Annotated[
    Folder, typer.Argument(metavar="REPORTS", parser=folder_at, help="The --out of wsi renal report.")
]
Out = Annotated[
    Folder,
    typer.Option(
        "--out",
        "-o",
        metavar="OUT",
        parser=folder_at,
        help="The folder for the results; it is made if it is not there. A URL such as s3://bucket/run works, too.",
    ),
]


def check_patch_spacing(mpp: float | None, card: ModelCard) -> None:
    """Print the spacing that is assumed for the patches; refuse patches that are coarser than the model's spacing."""
    if card.spacing_um is None:
        return
    if mpp is None:
        sentence = f"the patches are taken to have {card.spacing_um:g} um/px, the model's spacing; --mpp says otherwise"
        err.print(sentence, markup=False)
    elif mpp > card.spacing_um * (1 + card.spacing_tolerance):
        raise ConfigError(
            f"patches of {mpp:g} um/px are coarser than the model's {card.spacing_um:g}; use a model of their spacing"
        )
