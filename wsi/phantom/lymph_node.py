"""Phantoms of H&E lymph nodes: tissue painted piece by piece, with the truth beside it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from shapely import MultiPolygon

from wsi.annotations import Annotation, write_asap
from wsi.arrays import RgbImage
from wsi.files import replacing, write_text
from wsi.phantom.layout import Artefact, Disc, Layout, Planner
from wsi.phantom.pyramid import write_pyramid
from wsi.phantom.textures import SCANNERS, Plane, Scanner, Staining, lone_px, make_atlas, wrap_crop
from wsi.raster import cells_inside, fill_polygon

MASK_LEVEL_PX = 32  # truth masks have Camelyon16's evaluation level 5: level-0 pixels per mask pixel
_COARSE = 8  # regions are decided on every 8th pixel, then enlarged
_MARGIN = 2  # coarse cells around a piece, so that smoothing sees the same on both sides of its border
_EDGE = _MARGIN * _COARSE
_FAR = 64  # distance to the border is kept on every 64th pixel
_LATTICE = 128
_BLUR_PX = 6  # standard deviation of the blur artefact


@dataclass(frozen=True, slots=True)
class PhantomSlide:
    """What is written for one phantom."""

    name: str
    seed: int
    tumour: bool
    size: tuple[int, int]
    scanner: int = 0


class Painter:
    """Renders any piece of one slide; pieces agree at their borders, whatever the order."""

    def __init__(self, layout: Layout, rng: np.random.Generator, scanner: Scanner) -> None:
        self.layout = layout
        self.mpp = layout.mpp
        staining = Staining(scanner, rng.uniform(0.85, 1.15), rng.uniform(0.8, 1.25), rng.uniform(0.75, 1.15))
        self.atlas = make_atlas(rng, staining)
        self.lattices = rng.standard_normal((3, _LATTICE, _LATTICE)).astype(np.float32)
        self.wiggle = self._wiggle(rng)
        self.depth_um = self._depth()
        self.turns = rng.uniform(0, 360, len(layout.cells))
        self.glass = scanner.glass

    def _wiggle(self, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        """Cell-sized noise, 64..192, that makes borders of regions follow cells."""
        side = 1024
        field = cv2.GaussianBlur(
            np.pad(rng.standard_normal((side, side)).astype(np.float32), 64, mode="wrap"),
            (0, 0),
            3 / self.mpp,
        )[64:-64, 64:-64]
        return np.asarray(np.clip(128 + 32 * field / field.std(), 64, 192), np.uint8)

    def _depth(self) -> Plane:
        """Signed distance to the nodes' border in um, positive inside, on every 64th pixel."""
        cols, rows = (-(-n // _FAR) + 2 for n in self.layout.size)
        inside = np.zeros((rows, cols), np.uint8)
        for node in self.layout.nodes:
            fill_polygon(inside, node, (_FAR, _FAR), 1)
        within = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
        outside = cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
        return np.asarray((within - outside) * _FAR * self.mpp, np.float32)

    def render(self, x0: int, y0: int, width: int, height: int) -> RgbImage | None:
        """Pixels of one piece; None where there is only glass."""
        artefacts = [a for a in self.layout.artefacts if _near(a, x0, y0, width, height)]
        if any(a.kind == "blur" for a in artefacts):
            # what is blurred looks beyond the piece's border
            edge = _BLUR_PX * 4
            image = self._paint(x0 - edge, y0 - edge, width + 2 * edge, height + 2 * edge, artefacts)
            return None if image is None else np.ascontiguousarray(image[edge:-edge, edge:-edge])
        return self._paint(x0, y0, width, height, artefacts)

    def _paint(self, x0: int, y0: int, width: int, height: int, artefacts: list[Artefact]) -> RgbImage | None:
        depth = self._depth_of(x0, y0, width, height)
        tissue = depth.max() > -130
        if not tissue and not artefacts:
            return None
        image = self._tissue(x0, y0, width, height, depth) if tissue else self._glass(width, height)
        for artefact in artefacts:
            PAINTERS[artefact.kind](image, artefact, x0, y0)
        return image

    def _glass(self, width: int, height: int) -> RgbImage:
        return np.full((height, width, 3), self.glass, np.uint8)

    def _grid(self, x0: int, y0: int, width: int, height: int) -> tuple[Plane, Plane]:
        x = (np.arange(width // _COARSE + 2 * _MARGIN, dtype=np.float32) + 0.5 - _MARGIN) * _COARSE + x0
        y = (np.arange(height // _COARSE + 2 * _MARGIN, dtype=np.float32) + 0.5 - _MARGIN) * _COARSE + y0
        across, down = np.meshgrid(x, y)
        return across, down

    def _depth_of(self, x0: int, y0: int, width: int, height: int) -> Plane:
        x, y = self._grid(x0, y0, width, height)
        return np.asarray(
            cv2.remap(
                self.depth_um,
                x / _FAR - 0.5,
                y / _FAR - 0.5,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
        )

    def _noise(self, which: int, blob_um: float, x: Plane, y: Plane) -> Plane:
        step = blob_um / self.mpp
        at = [np.asarray(c / step % _LATTICE, np.float32) for c in (x, y)]
        return np.asarray(
            cv2.remap(self.lattices[which], at[0], at[1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
        )

    def _tissue(self, x0: int, y0: int, width: int, height: int, depth: Plane) -> RgbImage:
        x, y = self._grid(x0, y0, width, height)
        rough = depth + 14 * self._noise(0, 60, x, y)
        bands = self._noise(1, 110, x, y) + 0.5 * self._noise(2, 45, x, y)
        medulla = rough > 420 + 200 * self._noise(2, 500, x, y)
        image = self._glass(width, height)
        place = (x0, y0, width, height)
        self._lay(image, "fat", (rough > -110 + 60 * bands) & (rough <= 4), place)
        self._lay(image, "lymphocytes", rough > 0, place)
        self._lay(image, "germinal_centre", self._discs(self.layout.follicles, x, y, bands), place)
        sinuses = ((rough > 45) & (rough < 75)) | (medulla & (np.abs(bands) < 0.28))
        self._lay(image, "sinus", sinuses & (rough > 0), place)
        trabecula = (np.abs(self._noise(0, 420, x, y)) < 0.045) & (rough > 0)
        self._lay(image, "stroma", ((rough > 0) & (rough < 42)) | trabecula, place)
        walls = self._discs(self.layout.vessels, x, y, np.float32(0.3) * bands)
        self._lay(image, "stroma", walls, place)
        inner = tuple(Disc(v.x, v.y, v.radius * 0.6) for v in self.layout.vessels)
        self._lay(image, "blood", self._discs(inner, x, y, np.float32(0.3) * bands), place)
        self._lay(image, "tumour", self._lesions(x0, y0, x.shape), place)
        self._lone_cells(image, x0, y0)
        return self._uneven(image, x, y)

    def _lay(
        self, image: RgbImage, texture: str, where: npt.NDArray[np.bool_], place: tuple[int, int, int, int]
    ) -> None:
        """Copy a texture where the coarse raster says so, with cell-sized wiggles at the border."""
        if not where.any():
            return
        x0, y0, width, height = place
        soft = cv2.resize(
            cv2.blur(where.astype(np.uint8) * 255, (3, 3)),
            None,
            fx=_COARSE,
            fy=_COARSE,
            interpolation=cv2.INTER_LINEAR,
        )[_EDGE : _EDGE + height, _EDGE : _EDGE + width]
        side = self.wiggle.shape[0]
        rows = np.arange(y0, y0 + height) % side
        threshold = np.tile(self.wiggle, (1, -(-width // side) + 1))[rows, x0 % side : x0 % side + width]
        mask = cv2.compare(soft, threshold, cv2.CMP_GT)
        cv2.copyTo(wrap_crop(self.atlas[texture], x0, y0, width, height), mask, image)

    def _discs(self, discs: tuple[Disc, ...], x: Plane, y: Plane, bands: Plane) -> npt.NDArray[np.bool_]:
        inside = np.zeros(x.shape, np.bool_)
        for disc in discs:
            if x[0, 0] - 1.5 * disc.radius < disc.x < x[0, -1] + 1.5 * disc.radius and (
                y[0, 0] - 1.5 * disc.radius < disc.y < y[-1, 0] + 1.5 * disc.radius
            ):
                inside |= np.hypot(x - disc.x, y - disc.y) < disc.radius * (1 + 0.12 * bands)
        return inside

    def _lesions(self, x0: int, y0: int, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        raster = np.zeros(shape, np.uint8)
        for lesion in self.layout.lesions:
            if lesion.kind != "isolated":
                fill_polygon(raster, lesion.outline, (_COARSE, _COARSE), 1, corner=(x0 - _EDGE, y0 - _EDGE))
        return raster > 0

    def _lone_cells(self, image: RgbImage, x0: int, y0: int) -> None:
        """Lay single tumour cells over the tissue."""
        height, width = image.shape[:2]
        side = lone_px(self.mpp)
        across = self.atlas["tumour_cells"].shape[0] // side
        for (x, y), turn in zip(self.layout.cells, self.turns, strict=True):
            left, top = round(x) - side // 2 - x0, round(y) - side // 2 - y0
            if left >= width or top >= height or left + side <= 0 or top + side <= 0:
                continue
            col, row = int(turn) % across, int(turn) // across % across
            stamp = self.atlas["tumour_cells"][row * side : (row + 1) * side, col * side : (col + 1) * side]
            mask = cv2.compare(stamp.min(axis=2), min(self.glass) - 70, cv2.CMP_LT)  # the cell, not its glass
            a, b = max(0, left), max(0, top)
            c, d = min(width, left + side), min(height, top + side)
            inner = np.s_[b - top : d - top, a - left : c - left]
            cv2.copyTo(np.ascontiguousarray(stamp[inner]), np.ascontiguousarray(mask[inner]), image[b:d, a:c])

    def _uneven(self, image: RgbImage, x: Plane, y: Plane) -> RgbImage:
        """Thickness varies: density up to 15 % more or less, over half a millimetre."""
        gain = 1 + np.clip(0.06 * self._noise(1, 500, x, y), -0.15, 0.15)
        height, width = image.shape[:2]
        full = cv2.resize(gain, None, fx=_COARSE, fy=_COARSE, interpolation=cv2.INTER_LINEAR)
        full = full[_EDGE : _EDGE + height, _EDGE : _EDGE + width]
        dark = cv2.multiply(cv2.bitwise_not(image), cv2.merge([full] * 3), dtype=cv2.CV_8U)
        return np.asarray(cv2.bitwise_not(dark))


def _near(artefact: Artefact, x0: int, y0: int, width: int, height: int) -> bool:
    points, reach = np.array(artefact.line), artefact.width * 1.2 + 4
    low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
    return bool(low[0] < x0 + width and high[0] > x0 and low[1] < y0 + height and high[1] > y0)


def _stroke(image: RgbImage, artefact: Artefact, x0: int, y0: int, width: float) -> npt.NDArray[np.uint8]:
    mask = np.zeros(image.shape[:2], np.uint8)
    points = np.round((np.array(artefact.line) - [x0, y0]) * 16).astype(np.int32)
    if len(points) == 1:
        cv2.circle(mask, (int(points[0, 0]), int(points[0, 1])), round(width * 16), 255, -1, cv2.LINE_8, 4)
    else:
        cv2.polylines(mask, [points], False, 255, max(1, round(width)), cv2.LINE_8, 4)
    return mask


def _fold(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Tissue lies twice: its density doubles; glass stays as it is."""
    tissue = cv2.blur(image, (9, 9)).min(axis=2) < 228
    mask = (_stroke(image, artefact, x0, y0, artefact.width) > 0) & tissue
    light = image[mask].astype(np.float32) / 255
    image[mask] = np.round(255 * light * light).astype(np.uint8)


def _blur(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Out of focus inside a disc."""
    mask = _stroke(image, artefact, x0, y0, artefact.width)
    cv2.copyTo(cv2.GaussianBlur(image, (0, 0), _BLUR_PX), mask, image)


def _pen(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Ink on the cover glass: most of the light below is gone."""
    mask = _stroke(image, artefact, x0, y0, artefact.width) > 0
    ink = np.array(artefact.colour, np.float32)
    image[mask] = np.round(0.18 * image[mask] * (ink / 255) + 0.82 * ink).astype(np.uint8)


def _bubble(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """Air under the cover glass: paler inside, a dark and a bright rim."""
    inner = _stroke(image, artefact, x0, y0, artefact.width) > 0
    rim = (_stroke(image, artefact, x0, y0, artefact.width * 1.03) > 0) & ~inner
    image[inner] = (image[inner].astype(np.uint16) * 3 // 5 + 95).astype(np.uint8)
    image[rim] = (image[rim] * 0.45).astype(np.uint8)


def _edge(image: RgbImage, artefact: Artefact, x0: int, y0: int) -> None:
    """The edge of the cover glass: a grey line."""
    image[_stroke(image, artefact, x0, y0, artefact.width) > 0] = artefact.colour


PAINTERS: dict[str, Callable[[RgbImage, Artefact, int, int], None]] = {
    "fold": _fold,
    "blur": _blur,
    "pen": _pen,
    "bubble": _bubble,
    "edge": _edge,
}


def plan_cohort(
    count: int, seed: int, size: tuple[int, int], tumour_share: float = 0.5
) -> list[PhantomSlide]:
    """Names and seeds: tumour slides first, each seed its own and unlike those of another ``seed``."""
    tumours = round(count * tumour_share)
    return [
        PhantomSlide(
            f"tumor_{i + 1:03d}" if i < tumours else f"normal_{i + 1 - tumours:03d}",
            seed * 1_000 + i,
            i < tumours,
            size,
            (i if i < tumours else i - tumours) % len(SCANNERS),  # alternates within each class
        )
        for i in range(count)
    ]


def write_phantom(
    slide: PhantomSlide, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> Layout:
    """Write ``NAME.tif``, ``NAME.xml`` (ASAP) and ``NAME_mask.png``; the same bytes for the same seed.

    Returns:
        What was drawn.
    """
    layout_seed, paint_seed = np.random.SeedSequence(slide.seed).spawn(2)
    scanner = SCANNERS[slide.scanner]
    layout = Planner(np.random.default_rng(layout_seed), slide.size, scanner.mpp).layout(tumour=slide.tumour)
    painter = Painter(layout, np.random.default_rng(paint_seed), scanner)
    path = out / f"{slide.name}.tif"
    write_pyramid(path, slide.size, scanner.mpp, painter.render, background=scanner.glass, progress=progress)
    truth = [Annotation(lesion.outline, "Tumor", name=lesion.kind) for lesion in layout.lesions]
    write_asap(out / f"{slide.name}.xml", truth)
    _write_mask(out / f"{slide.name}_mask.png", layout)
    return layout


def _write_mask(path: Path, layout: Layout) -> None:
    """255 where the centre of a mask pixel lies in a lesion; one pixel is 32 level-0 pixels (level 5)."""
    cols, rows = (-(-n // MASK_LEVEL_PX) for n in layout.size)
    area = MultiPolygon([lesion.outline for lesion in layout.lesions])
    raster = cells_inside(area, (MASK_LEVEL_PX, MASK_LEVEL_PX), (rows, cols)).astype(np.uint8) * 255
    with replacing(path) as partial:
        partial.write_bytes(cv2.imencode(".png", raster)[1].tobytes())


def validation_split(slides: list[PhantomSlide], share: float) -> list[str]:
    """``train`` or ``validation`` for each slide: the share of each class, spread evenly, one at least of two."""
    splits = []
    for i, slide in enumerate(slides):
        same = [s.tumour == slide.tumour for s in slides]
        n, j = sum(same), sum(same[:i])
        wanted = max(1, round(n * share)) if share > 0 and n > 1 else 0
        splits.append("validation" if (j + 1) * wanted // n > j * wanted // n else "train")
    return splits


def write_manifest(out: Path, slides: list[PhantomSlide], splits: list[str]) -> None:
    """``slides.csv`` with path, truth, label and split, for `wsi score` and `wsi train`."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["path", "truth", "label", "split"])
    for slide, split in zip(slides, splits, strict=True):
        label = "tumor" if slide.tumour else "normal"
        rows.writerow([f"{slide.name}.tif", f"{slide.name}.xml", label, split])
    write_text(out / "slides.csv", text.getvalue())
