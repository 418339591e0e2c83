"""Mosaics: phantoms whose tissue is cut from real patches, and whose lesions have real outlines.

Every place of the slide shows the patch of the nearest seed of a jittered, turned lattice. Borders between
patches are bent and a few pixels soft; patches lie in order of their darkness along a smooth field, so
that neighbours look alike, and each is shown in one of 8 orientations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from scipy.special import ndtr
from shapely import Polygon, affinity
from skimage.filters import threshold_otsu

from wsi.arrays import RgbImage, oriented
from wsi.datasets.patch_folder import NEGATIVE_LABEL, POSITIVE_LABEL, PatchFolder
from wsi.errors import ConfigError
from wsi.marks.annotations import read_annotations, tumour_regions
from wsi.phantoms.canvas import Canvas, Place
from wsi.phantoms.layout import Layout, longest
from wsi.phantoms.textures import Plane

GLASS = (243, 241, 242)
_PITCH = 0.47  # of a patch's side, between seeds: the farthest place of a seed still lies on its patch
_JITTER = 0.06
_BEND_PX = 5.0  # standard deviation of how far borders are bent
_SOFT_PX = 2.5  # a border's weights fall by e over this distance
_TABLE = 512  # seeds until the random numbers repeat: over 60,000 px
_PICKS = 64  # places until the choice repeats; with the orientations' table, no two stretches are alike
_SPREAD = 0.35  # of the patches, from which the one at a place is taken
_APART = 26  # patches needed so that none lies twice within 5 x 5 places
_GLASS_FROM, _MOST_GLASS = 215, 0.12  # darkest channel of empty glass; share of it in a tumour patch
_SMALLEST_OUTLINE_PX = 400.0


@dataclass(frozen=True, eq=False, slots=True)
class Material:
    """Patches and outlines that mosaics are made of.

    Attributes:
        normal, tumour: (n, side, side, 3) RGB patches.
        outlines: outlines of lesions around the origin, with a longest side of 1.
    """

    normal: npt.NDArray[np.uint8]
    tumour: npt.NDArray[np.uint8]
    outlines: tuple[Polygon, ...]


def load_material(patches: PatchFolder, outlines: list[Polygon], low: float, high: float) -> Material:
    """The patches and outlines of a contiguous share, 0 to 1, of both lists.

    Raises:
        ConfigError: the share holds no tumour patch, no normal patch or no outline.
    """
    indices = patches.part(low, high)
    patches_by_class = [
        [patches.pixels[i] for i in indices if patches.files[i].label == c]
        for c in (NEGATIVE_LABEL, POSITIVE_LABEL)
    ]
    part_of_outlines = outlines[round(low * len(outlines)) : round(high * len(outlines))]
    if not all([*patches_by_class, part_of_outlines]):
        raise ConfigError(
            f"{low:.0%} to {high:.0%} of the patches and outlines hold {len(patches_by_class[0])} normal patches, "
            f"{len(patches_by_class[1])} tumour patches and {len(part_of_outlines)} outlines; take a larger --part"
        )
    return Material(np.stack(patches_by_class[0]), np.stack(patches_by_class[1]), tuple(part_of_outlines))


def read_outlines(folder: Path) -> list[Polygon]:
    """The largest outline of every annotation file, by name, around the origin, of longest side 1.

    Raises:
        AnnotationError: a file is broken.
        ConfigError: the folder holds no outline.
    """
    outlines = []
    for path in sorted(p for p in folder.glob("*") if p.suffix.lower() in (".json", ".geojson", ".xml")):
        area = tumour_regions(read_annotations(path), path).area
        largest = max(area.geoms, key=lambda p: p.area, default=None)
        if largest is None or longest(largest) < _SMALLEST_OUTLINE_PX:
            continue
        middle, scale = largest.centroid, 1 / longest(largest)
        centred = affinity.translate(largest, -middle.x, -middle.y)
        outlines.append(affinity.scale(centred, scale, scale, origin=(0, 0)))
    if not outlines:
        raise ConfigError(f"{folder} holds no outline of a lesion in JSON, GeoJSON or XML; check --polygons")
    return outlines


class MosaicTissue:
    """Painter of tissue from patches of one stain."""

    glass = GLASS

    def __init__(self, layout: Layout, rng: np.random.Generator, material: Material, stain: int) -> None:
        self.canvas = Canvas(layout, rng)
        normal = of_one_stain(material.normal, stain)
        target = chroma(normal[int(rng.integers(len(normal)))][None])[0]
        # tumour patches are few: those of both stains are taken, and no order, or they would repeat visibly
        self.normal = Palette(_by_darkness(match_chroma(normal, target)), rng, _SPREAD)
        self.tumour = Palette(match_chroma(_full(material.tumour), target), rng, 1.0)

    def paint(self, place: Place, depth: Plane) -> RgbImage:
        """Pixels of a piece; ``depth`` is `Canvas.depth` on its coarse grid."""
        canvas = self.canvas
        x, y = canvas.grid(place)
        image = np.full((place.height, place.width, 3), self.glass, np.uint8)
        inside = canvas.mask(depth + 14 * canvas.noise(0, 60, x, y) > 0, place)
        lesions = canvas.mask(canvas.lesions(place, x.shape) & (depth > 0), place)
        bent = [canvas.enlarge(c + _BEND_PX * canvas.noise(i, 14, x, y), place) for i, c in enumerate((x, y))]
        for palette, mask in ((self.normal, inside & ~lesions), (self.tumour, lesions)):
            if mask.any():
                painted = palette.paint(place, bent, mask, canvas)
                soft = cv2.GaussianBlur(mask, (5, 5), 0)[..., None].astype(np.uint16)
                image[:] = (painted * soft + image * (255 - soft) + 127) // 255
        tissue = cv2.dilate(inside, np.ones((5, 5), np.uint8))  # empty glass stays as it is
        return np.asarray(cv2.copyTo(canvas.uneven(image, x, y, place), tissue, image), np.uint8)


class Palette:
    """Patches of one tissue, each tissue on its own lattice."""

    def __init__(self, patches: npt.NDArray[np.uint8], rng: np.random.Generator, spread: float) -> None:
        self.patches = patches
        self.spread = min(len(patches), max(_APART, round(spread * len(patches))))
        self.pick = _apart(self.spread, rng)
        self.side = patches.shape[1]
        self.pitch = _PITCH * self.side
        angle = rng.uniform(0, np.pi / 2)
        self.turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.jitter = rng.uniform(-_JITTER, _JITTER, (_TABLE, _TABLE, 2)) * self.side
        self.orientation = rng.integers(0, 8, (_TABLE, _TABLE))
        self.shift = rng.uniform(-1000, 1000, 2)

    def seeds(self, place: Place) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Lattice indices (n, 2) and level-0 x, y (n, 2) of the seeds whose patch touches a piece."""
        half = self.side / 2
        x0, y0, x1, y1 = place.x0, place.y0, place.x0 + place.width, place.y0 + place.height
        corners = np.array([(x, y) for x in (x0 - half, x1 + half) for y in (y0 - half, y1 + half)])
        along = (corners - self.shift) @ self.turn / self.pitch
        low, high = np.floor(along.min(axis=0)).astype(int), np.ceil(along.max(axis=0)).astype(int)
        index = np.stack(
            np.meshgrid(*(np.arange(a - 1, b + 2) for a, b in zip(low, high, strict=True)), indexing="ij"), -1
        ).reshape(-1, 2)
        points = index * self.pitch @ self.turn.T + self.shift + self.jitter[tuple(index.T % _TABLE)]
        touches = (points > [x0 - half, y0 - half]).all(axis=1) & (points < [x1 + half, y1 + half]).all(
            axis=1
        )
        return index[touches], points[touches]

    def paint(
        self,
        place: Place,
        bent: list[cv2.typing.MatLike],
        mask: npt.NDArray[np.uint8],
        canvas: Canvas,
    ) -> RgbImage:
        """The piece's pixels where ``mask`` is not 0; black elsewhere."""
        index, points = self.seeds(place)
        choice = self._choose(index, points, canvas)
        windows = [self._window(point, place) for point in points]
        nearest = np.full(mask.shape, np.inf, np.float32)
        distances = []
        for point, (window, _) in zip(points, windows, strict=True):
            visible = mask[window].any()
            distance = np.hypot(bent[0][window] - point[0], bent[1][window] - point[1]) if visible else None
            distances.append(distance)
            if distance is not None:
                np.minimum(nearest[window], distance, out=nearest[window])
        total = np.zeros((*mask.shape, 1), np.float32)
        colour = np.zeros((*mask.shape, 3), np.float32)
        for k, (distance, (window, patch_window)) in enumerate(zip(distances, windows, strict=True)):
            if distance is None:
                continue
            weight = np.exp((nearest[window] - distance) / _SOFT_PX)[..., None]
            if weight.max() > 0.02:
                patch = oriented(self.patches[choice[k]], int(self.orientation[tuple(index[k] % _TABLE)]))
                colour[window] += weight * patch[patch_window]
                total[window] += weight
        return np.asarray(np.round(colour / np.maximum(total, 1e-6)), np.uint8)

    def _window(
        self, point: npt.NDArray[np.float64], place: Place
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The window of the piece that a patch covers, and the window of the patch that is visible there."""
        left = round(point[0] - self.side / 2) - place.x0
        top = round(point[1] - self.side / 2) - place.y0
        a, b = max(0, left), max(0, top)
        c, d = min(place.width, left + self.side), min(place.height, top + self.side)
        return np.s_[b : max(b, d), a : max(a, c)], np.s_[
            b - top : max(b, d) - top, a - left : max(a, c) - left
        ]

    def _choose(
        self, index: npt.NDArray[np.int64], points: npt.NDArray[np.float64], canvas: Canvas
    ) -> npt.NDArray[np.int64]:
        """Index of the patch at each seed: by a smooth field, pale near the node's border, never twice in 5 x 5."""
        x, y = (np.asarray(points[:, i : i + 1], np.float32) for i in (0, 1))
        dark = ndtr(1.2 * canvas.noise(2, 450, x, y)[:, 0])
        dark *= np.clip(canvas.depth(x, y)[:, 0] / 150, 0.1, 1)
        start = np.round(dark * (len(self.patches) - self.spread)).astype(np.int64)
        return np.asarray(start + self.pick[tuple(index.T % len(self.pick))])


def _apart(n: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A table of numbers below ``n``, without a repeat within 5 x 5 places as far as ``n`` allows."""
    table = np.full((_PICKS, _PICKS), -1)
    for row, col in np.ndindex(table.shape):
        rows, cols = (np.arange(c - 2, c + 3) % _PICKS for c in (row, col))
        candidates = np.setdiff1d(np.arange(n), table[np.ix_(rows, cols)])
        table[row, col] = rng.choice(candidates) if len(candidates) else rng.integers(n)
    return table


def _density(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Mean optical density of each patch, (n, 3)."""
    table = -np.log10((np.arange(256) + 1) / 256)
    return np.stack([table[patch].mean(axis=(0, 1)) for patch in patches])


def chroma(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Each channel's share of a patch's optical density, (n, 3): the stain's hue, whatever its amount."""
    density = _density(patches)
    return np.asarray(density / density.sum(axis=1, keepdims=True))


def match_chroma(patches: npt.NDArray[np.uint8], target: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Patches with the stain's hue ``target`` and unchanged density, as slides differ in stain but tiles do not."""
    density = _density(patches)
    factor = np.clip(target / (density / density.sum(axis=1, keepdims=True)), 0.6, 1.6)  # (n, 3)
    factor *= density.sum(axis=1, keepdims=True) / (factor * density).sum(axis=1, keepdims=True)
    light = np.arange(256) / 255
    tables = np.round(255 * light ** factor[:, :, None]).astype(np.uint8)  # (n, 3, 256)
    return np.stack(
        [np.stack([t[c][p[..., c]] for c in range(3)], -1) for p, t in zip(patches, tables, strict=True)]
    )


def of_one_stain(patches: npt.NDArray[np.uint8], stain: int) -> npt.NDArray[np.uint8]:
    """The patches of one of two stains, separated by their share of blue density; all patches if these are few.

    Camelyon16's two laboratories differ in it: one is brownish (large share), the other blue-violet (small share).
    """
    blue = chroma(patches)[:, 2]
    border = threshold_otsu(blue) if np.ptp(blue) > 0 else blue[0]
    same_stain = (blue > border) == (stain == 0)
    return patches[same_stain] if same_stain.sum() >= _APART else patches


def _full(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The patches that show little glass, or all if there are none; holes would show that patches repeat."""
    glass = np.array([(patch.min(axis=2) > _GLASS_FROM).mean() for patch in patches])
    return patches[glass < _MOST_GLASS] if (glass < _MOST_GLASS).any() else patches


def _by_darkness(patches: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return patches[np.argsort(_density(patches).sum(axis=1), kind="stable")]
