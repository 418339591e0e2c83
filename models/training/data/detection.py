"""Examples for a detector: tiles of slides with the boxes that lie in them, enlarged and turned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsi.arrays import BoxesXYXY, PointsXY, RgbImage
from wsi.errors import AnnotationError
from wsi.marks.annotations import read_annotations
from wsi.marks.boxes import Boxes, enlarged
from wsi.marks.geojson import read_objects
from wsi.slides.slide import Slide
from wsi.slides.tiles import read_square
from wsi.vocabulary import FEASIBLE, NOT_COUNTED, NOT_FEASIBLE

LEAST_SEEN = 0.4  # share of a box that must lie in the tile: less of a capillary cannot be told
TRAP = -1  # in place of a class: what is marked as no object


@dataclass(frozen=True, eq=False, slots=True)
class MarkedSlide:
    """Boxes around what is marked on a slide, in level-0 pixels.

    Attributes:
        objects: the boxes around the objects' outlines, not enlarged, without scores.
        traps: (m, 4) around what may be taken for an object and is none: tiles are drawn there, too.
        fields: (k, 4) feasible fields; where there are any, nothing is known of what lies beyond them.
    """

    objects: Boxes
    traps: BoxesXYXY = field(default_factory=lambda: np.empty((0, 4)))
    fields: BoxesXYXY = field(default_factory=lambda: np.empty((0, 4)))

    @property
    def usable(self) -> bool:
        """Whether there is anything to draw a tile around."""
        return bool(len(self.objects) or len(self.traps))


def read_marked(path: Path, classes: Sequence[str]) -> MarkedSlide:
    """Boxes of an annotation file.

    Args:
        path: GeoJSON or ASAP XML whose groups are the classes, ``not a capillary`` for traps, and ``feasible`` and
            ``not feasible`` for fields: a corrected file of ``wsi renal report`` marks what is in feasible ones.
        classes: their names, in order.

    Raises:
        AnnotationError: the file is broken, or holds another class, an object without one, or a point.
    """
    boxes, labels, traps, fields = [], [], [], []
    known = (*classes, NOT_COUNTED)
    for group, bounds in _marks(path):
        if group == FEASIBLE:
            fields.append(bounds)
        elif group == NOT_COUNTED:
            traps.append(bounds)
        elif group in classes:
            boxes.append(bounds)
            labels.append(classes.index(group))
        elif group != NOT_FEASIBLE:
            what = (
                f"the class {group!r}"
                if group
                else f"an object without a class at ({bounds[0]:.0f}, {bounds[1]:.0f})"
            )
            raise AnnotationError(f"{path} holds {what}; known are {', '.join(known)}: rename or remove it")
    objects = Boxes(_boxes(boxes), np.array(labels, np.int64))
    return MarkedSlide(objects, _boxes(traps), _boxes(fields))


def _marks(path: Path) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Class and bounds of everything that is marked; the class is empty where an object has none."""
    if path.suffix.lower() == ".xml":
        yield from ((a.group, a.outline.bounds) for a in read_annotations(path))
        return
    for o in read_objects(path):
        if not o.shape.area > 0:  # holes larger than their outline make it negative
            raise AnnotationError(
                f"{path} holds a {o.shape.geom_type} ({o.group!r}): mark each object by an outline"
            )
        yield o.group, o.shape.bounds


def _boxes(corners: Sequence[tuple[float, ...]]) -> BoxesXYXY:
    return np.array(corners, np.float64).reshape(-1, 4)


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """A tile and what is marked in it.

    Attributes:
        pixels: RGB uint8, (size, size, 3).
        objects: boxes in the tile's pixels, cut at its border, without scores.
    """

    pixels: RgbImage
    objects: Boxes


def read_example(
    slide: Slide,
    marked: MarkedSlide,
    corner: tuple[int, int],
    size_px: int,
    spacing_um: float,
    enlarge_um: Sequence[float],
) -> Example:
    """The tile whose top-left corner is there, resampled to a spacing.

    Args:
        slide: what is read.
        marked: what is marked on it; where it has fields, what lies beyond them is white and unmarked.
        corner: level-0 (x, y); may lie off the slide, which is white there.
        size_px: side of the tile.
        spacing_um: um per pixel of the tile.
        enlarge_um: for each class, see `enlarged`.

    Raises:
        RegionError: the place cannot be decoded.
        MissingMppError: the slide has no spacing.
    """
    scale = slide.mpp / spacing_um  # tile pixels per level-0 pixel
    pixels = read_square(slide, corner, size_px / scale, size_px)
    objects = marked.objects
    if len(marked.fields):
        objects = objects[_in_any(objects.centres, marked.fields)]
        pixels = _whitened(pixels, (marked.fields - np.array([*corner, *corner])) * scale)
    objects = enlarged(objects, [um / slide.mpp for um in enlarge_um])
    boxes = (objects.boxes - np.array([*corner, *corner])) * scale
    return Example(pixels, _inside(boxes, objects.labels, size_px))


def _in_any(points: PointsXY, fields: BoxesXYXY) -> npt.NDArray[np.bool_]:
    """Whether each point (n, 2) lies in any field (k, 4)."""
    x, y = points[:, None].transpose(2, 0, 1)  # (n, 1) each
    inside = (x >= fields[:, 0]) & (x < fields[:, 2]) & (y >= fields[:, 1]) & (y < fields[:, 3])
    return np.asarray(inside.any(axis=1))


def _whitened(pixels: RgbImage, fields: BoxesXYXY) -> RgbImage:
    """The tile with all that lies in none of the fields painted white; fields in the tile's pixels."""
    known = np.zeros(pixels.shape[:2], np.bool_)
    for x0, y0, x1, y1 in np.round(fields).astype(np.int64):
        known[max(0, y0) : max(0, y1), max(0, x0) : max(0, x1)] = True
    return np.where(known[..., None], pixels, np.uint8(255))


def _inside(boxes: BoxesXYXY, labels: npt.NDArray[np.int64], size: int) -> Boxes:
    """Boxes cut at the tile's border; those of which too little is left are left out."""
    cut = np.clip(boxes, 0, size)
    shown = np.clip(cut[:, 2:] - cut[:, :2], 0, None).prod(axis=1) / (boxes[:, 2:] - boxes[:, :2]).prod(
        axis=1
    )
    keep = shown >= LEAST_SEEN
    return Boxes(cut[keep], labels[keep])


def turned(example: Example, orientation: int) -> Example:
    """The tile and its boxes in orientation 0..7, the same as `models.networks.contract.orient`: transpose, then flips.

    Raises:
        ValueError: there is no such orientation.
    """
    if not 0 <= orientation < 8:
        raise ValueError(f"orientation must lie in 0..7, got {orientation}")
    pixels, boxes, size = example.pixels, example.objects.boxes, example.pixels.shape[0]
    if orientation & 1:
        pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    if orientation & 2:
        pixels = pixels[::-1]
        boxes = np.stack([boxes[:, 0], size - boxes[:, 3], boxes[:, 2], size - boxes[:, 1]], axis=1)
    if orientation & 4:
        pixels = pixels[:, ::-1]
        boxes = np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], axis=1)
    objects = replace(example.objects, boxes=np.ascontiguousarray(boxes))
    return Example(np.ascontiguousarray(pixels), objects)


def draw_corner(
    marked: MarkedSlide, size_l0: float, rng: np.random.Generator, label: int | None = None
) -> tuple[int, int]:
    """The corner of a tile that holds a random object somewhere in it.

    Args:
        marked: the slide.
        size_l0: side of the tile.
        rng: every draw comes from it.
        label: the object's class, or `TRAP`; where there is none of it, any object, and without one any trap.

    Raises:
        ValueError: nothing is marked.
    """
    if not marked.usable:
        raise ValueError("nothing is marked on this slide")
    objects = marked.objects
    wanted = marked.traps if label == TRAP else objects.boxes[objects.labels == label]
    choice = next(boxes for boxes in (wanted, objects.boxes, marked.traps) if len(boxes))
    x0, y0, x1, y1 = choice[int(rng.integers(len(choice)))]
    at = rng.uniform(0.15, 0.85, 2) * size_l0
    return round((x0 + x1) / 2 - at[0]), round((y0 + y1) / 2 - at[1])
