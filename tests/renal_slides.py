"""A small slide of squares that stand for capillaries, and networks that find them by colour."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from models.card import DetectorCard, DetectorConfig
from models.engines import Models
from pipelines.renal.read.reading import Readers
from tests.slides import card, write_pyramid
from wsi.arrays import Scores
from wsi.marks.boxes import Boxes
from wsi.slides.blocks import PatchBlock

TISSUE, BROWN, PALE_BROWN, BLUE, SCAR = (
    (205, 208, 226),
    (110, 70, 40),
    (150, 110, 80),
    (60, 80, 190),
    (120, 150, 120),
)
MPP, SIDE = 0.5, 512  # a field of 256 um
SQUARE = 24  # px, 12 um


@dataclass(frozen=True)
class Square:
    """A hollow square: its middle, and what it stands for."""

    x: int
    y: int
    colour: tuple[int, int, int]


def slide_of(path: Path, squares: Iterable[Square], *, cols: int = 4, rows: int = 3, scar: int = 1) -> Path:
    """Tissue of so many fields, with a margin of glass; the last ``scar`` columns of fields are green scar."""
    image = np.full((rows * SIDE, (cols + 1) * SIDE, 3), 245, np.uint8)
    image[:, : cols * SIDE] = TISSUE
    image[:, (cols - scar) * SIDE : cols * SIDE] = SCAR
    half = SQUARE // 2
    for s in squares:
        cv2.rectangle(image, (s.x - half, s.y - half), (s.x + half - 1, s.y + half - 1), s.colour, 5)
    return write_pyramid(path, image, mpp=MPP, tile=256)


def scattered(count: int, share: float, seed: int, *, cols: int = 3, rows: int = 3) -> list[Square]:
    """Squares on a jittered lattice over the fields that are not scar; so many of them brown."""
    rng = np.random.default_rng(seed)
    places = [(x, y) for y in range(40, rows * SIDE - 40, 64) for x in range(40, cols * SIDE - 40, 64)]
    chosen = [places[i] for i in rng.permutation(len(places))[:count]]
    return [
        Square(
            x + int(rng.integers(-9, 10)), y + int(rng.integers(-9, 10)), BROWN if i < share * count else BLUE
        )
        for i, (x, y) in enumerate(chosen)
    ]


class FieldEngine:
    """Feasible is what is not green."""

    description = "colour, CPU"

    def __init__(self) -> None:
        own = {"classes": ("not feasible", "feasible"), "positive": "feasible", "name": "fields-by-colour"}
        sides = {"patch_px": 64, "stride_px": 64, "spacing_um": 4.0, "threshold": 0.5}
        self.models = Models((Path("colour"),), (card(**own, **sides),))

    @property
    def spec(self) -> FieldEngine:
        """It stands in for what it is made of, too."""
        return self

    def make(self) -> FieldEngine:
        return self

    def expect(self, patches: int) -> None:
        pass

    def score(self, blocks: Iterable[PatchBlock], **_: object) -> Iterator[Scores]:
        for block in blocks:
            mean = block.patches(0, len(block)).astype(np.float32).mean(axis=(1, 2))
            feasible = (mean[:, 2] > mean[:, 1]).astype(np.float32) * 0.9
            yield np.stack([1 - feasible, feasible], axis=1)


class SquareDetector:
    """Finds hollow squares by colour: brown with 0.9, pale brown with 0.4, blue with 0.8."""

    description = "colour, CPU"

    def __init__(self, card: DetectorCard) -> None:
        self.card = card

    @property
    def spec(self) -> SquareDetector:
        """It stands in for what it is made of, too."""
        return self

    def make(self) -> SquareDetector:
        return self

    def detect(self, tiles: np.ndarray) -> list[Boxes]:
        return [self._one(tile) for tile in tiles]

    def _one(self, tile: np.ndarray) -> Boxes:
        boxes, scores, labels = [], [], []
        for colour, score, label in ((BROWN, 0.9, 1), (PALE_BROWN, 0.4, 1), (BLUE, 0.8, 0)):
            like = (np.abs(tile.astype(int) - colour).max(axis=2) < 25).astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(like, connectivity=8)
            for x, y, width, height, area in stats[1:]:
                if area > 60 and min(width, height) > 8:
                    boxes.append((x, y, x + width, y + height))
                    scores.append(score)
                    labels.append(label)
        sides = np.array(boxes, np.float64).reshape(-1, 4)
        return Boxes(sides, np.array(labels, np.int64), np.array(scores, np.float32))


def readers(**changes: object) -> Readers:
    """Both stand-ins, with a card."""
    fields: dict[str, object] = {
        "name": "squares",
        "detector": DetectorConfig(tile_px=512, spacing_um=MPP),
        "enlarge_um": (0.0, 0.0),
        "thresholds": (0.5, 0.5),
        "sha256": "0" * 64,
    }
    own = DetectorCard(**fields | changes)  # type: ignore[arg-type]
    return Readers(FieldEngine(), SquareDetector(own))
