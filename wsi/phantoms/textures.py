"""Seamless textures of lymph-node tissue: concentrations of haematoxylin and eosin, then colour.

Each texture wraps around at its borders, so any crop of an endless plane is four slices at most.
All sizes are in um; the drawing is done in pixels of the slide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wsi.arrays import RgbImage

Plane = npt.NDArray[np.float32]
"""(rows, cols) concentration; 1 is a well stained structure."""

LONE_UM = 18.0  # side of the square around a single tumour cell
_SHIFT = 3  # cv2's fractional bits: ellipses are placed to an eighth of a pixel


@dataclass(frozen=True, slots=True)
class Scanner:
    """A scanner and its laboratory's stain.

    Attributes:
        mpp: um per pixel.
        haematoxylin, eosin: optical density per unit concentration in R, G, B.
        glass: colour of empty glass.
    """

    name: str
    mpp: float
    haematoxylin: tuple[float, float, float]
    eosin: tuple[float, float, float]
    glass: tuple[int, int, int]


# Colours were matched by eye to the two kinds of real Camelyon16 patches (brownish and blue-violet).
SCANNERS = (
    Scanner("A", 0.243, (0.52, 0.68, 0.46), (0.09, 0.30, 0.22), (243, 241, 242)),
    Scanner("B", 0.226, (0.60, 0.72, 0.22), (0.13, 0.42, 0.11), (244, 243, 246)),
)


@dataclass(frozen=True, eq=False, slots=True)
class Stains:
    """Two concentration planes of one tissue."""

    haematoxylin: Plane
    eosin: Plane


@dataclass(frozen=True, slots=True)
class Nuclei:
    """A population of nuclei: sizes in um, concentrations 0..1.5."""

    pitch_um: float
    diameter_um: tuple[float, float]
    density: tuple[float, float]
    elongation: tuple[float, float] = (1.0, 1.3)
    present: float = 1.0
    rim: float = 0.15
    nucleolus: float = 0.0
    jitter: float = 0.3
    aligned: bool = False


class Texturer:
    """Painter of one slide's textures, which draws all random numbers from one generator."""

    def __init__(self, rng: np.random.Generator, mpp: float) -> None:
        self.rng = rng
        self.mpp = mpp
        self.tumour_size = rng.uniform(0.9, 1.15)  # one tumour a slide: its cells look alike
        self.tumour_density = rng.uniform(0.42, 0.68)

    def noise(self, side: int, blob_um: float) -> Plane:
        """Wrapping smooth noise of mean 0 and standard deviation 1, with blobs of this size."""
        cells = max(2, round(side * self.mpp / blob_um))
        coarse = self.rng.standard_normal((cells, cells)).astype(np.float32)
        padded = np.pad(coarse, 2, mode="wrap")
        scale = side / cells
        full = cv2.resize(padded, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        margin = round(2 * scale)
        field = full[margin : margin + side, margin : margin + side]
        return np.asarray((field - field.mean()) / field.std(), np.float32)

    def places(self, side: int, pitch_px: float, jitter: float) -> npt.NDArray[np.float64]:
        """Points (x, y) of a jittered hexagonal grid that wraps."""
        cols = max(1, round(side / pitch_px))
        rows = 2 * max(1, round(side / (pitch_px * 0.866) / 2))
        y, x = np.mgrid[0:rows, 0:cols].astype(np.float64)
        x = (x + 0.5 * (y % 2)) * side / cols
        y = y * side / rows
        points = np.stack([x.ravel(), y.ravel()], axis=1)
        points += self.rng.uniform(-jitter, jitter, points.shape) * pitch_px
        return points % side

    def draw_nuclei(self, plane: Plane, kind: Nuclei, where: npt.NDArray[np.bool_] | None = None) -> None:
        """Draw a population of nuclei into a haematoxylin plane, over its content."""
        side = plane.shape[0]
        points = self.places(side, kind.pitch_um / self.mpp, kind.jitter)
        points = points[self.rng.random(len(points)) < kind.present]
        if where is not None:
            cells = np.minimum(points.astype(np.int64), side - 1)
            points = points[where[cells[:, 1], cells[:, 0]]]
        n = len(points)
        radius = self.rng.uniform(*kind.diameter_um, n) / 2 / self.mpp
        stretch = np.sqrt(self.rng.uniform(*kind.elongation, n))
        angle = self.rng.normal(20, 12, n) if kind.aligned else self.rng.uniform(0, 180, n)
        density = self.rng.uniform(*kind.density, n)
        for point, r, s, a, d in zip(points, radius, stretch, angle, density, strict=True):
            axes = (r * s, r / s)
            for copy in wrapped(point, r * s, side):
                ellipse(plane, copy, axes, a, d * (1 + kind.rim))
                ellipse(plane, copy, (axes[0] - 2.2, axes[1] - 2.2), a, d * (1 - kind.rim))
                if kind.nucleolus:
                    dot = copy + np.array([np.cos(a), np.sin(a)]) * r * 0.25
                    ellipse(plane, dot, (r * 0.2, r * 0.2), 0, d + kind.nucleolus)

    def grain(self, plane: Plane, amount: float, blob_um: float = 0.9) -> Plane:
        """The plane multiplied by fine noise, as chromatin looks."""
        return np.asarray(
            plane * np.clip(1 + amount * self.noise(plane.shape[0], blob_um), 0.3, 2), np.float32
        )


def ellipse(
    plane: Plane, center: npt.NDArray[np.float64], axes: tuple[float, float], angle: float, value: float
) -> None:
    """Fill an ellipse of half-axes ``axes`` pixels; nothing where an axis is not positive."""
    if min(axes) <= 0:
        return
    one = 1 << _SHIFT
    middle = (round(center[0] * one), round(center[1] * one))
    halves = (round(axes[0] * one), round(axes[1] * one))
    cv2.ellipse(plane, middle, halves, angle, 0, 360, float(value), -1, cv2.LINE_8, _SHIFT)


def wrapped(point: npt.NDArray[np.float64], reach: float, side: int) -> list[npt.NDArray[np.float64]]:
    """The point, and its copies across the borders that its reach crosses."""
    copies = [point]
    for axis in (0, 1):
        for sign in (1, -1):
            if (point[axis] < reach) if sign == 1 else (point[axis] > side - reach):
                step = np.zeros(2)
                step[axis] = sign * side
                copies += [c + step for c in copies]
    return copies


def lymphocytes(t: Texturer, side: int) -> Stains:
    """Packed small dark nuclei with hardly any cytoplasm."""
    h = np.zeros((side, side), np.float32)
    t.draw_nuclei(h, Nuclei(7.8, (5.8, 7.6), (0.85, 1.25), (1.0, 1.25), present=0.94, rim=0.12))
    gaps = t.noise(side, 5.0)
    eosin = np.clip(0.42 + 0.30 * gaps, 0.0, 1.0)
    return Stains(t.grain(h, 0.22), np.asarray(np.where(h > 0, 0.4, eosin), np.float32))


def germinal_centre(t: Texturer, side: int) -> Stains:
    """Larger, paler nuclei close together, with pale macrophages that hold dark specks."""
    h = np.zeros((side, side), np.float32)
    macrophage = t.noise(side, 35.0) > 1.9
    t.draw_nuclei(h, Nuclei(9.8, (6.8, 9.6), (0.45, 0.85), (1.0, 1.35), present=0.93, rim=0.22), ~macrophage)
    t.draw_nuclei(h, Nuclei(9.0, (1.5, 3.5), (0.9, 1.3), present=0.5), macrophage)
    eosin = np.where(macrophage, 0.25, np.clip(0.55 + 0.18 * t.noise(side, 4.0), 0, 1))
    return Stains(t.grain(h, 0.3), np.asarray(eosin, np.float32))


def sinus(t: Texturer, side: int) -> Stains:
    """Loose space with scattered lymphocytes and histiocytes of ample pale cytoplasm."""
    h = np.zeros((side, side), np.float32)
    eosin = np.clip(0.12 + 0.16 * t.noise(side, 12.0), 0.0, 0.5)
    for point in t.places(side, 21 / t.mpp, 0.45):
        reach, density = t.rng.uniform(6, 10) / t.mpp, t.rng.uniform(0.5, 0.7)
        turn, cytoplasm = t.rng.uniform(0, 180), t.rng.uniform(0.35, 0.6)
        if t.rng.random() < 0.6:
            for copy in wrapped(point, reach * 1.3, side):
                ellipse(eosin, copy, (reach, reach * 0.8), turn, cytoplasm)
                ellipse(h, copy, (3.9 / t.mpp, 2.9 / t.mpp), turn + 40, density)
    t.draw_nuclei(h, Nuclei(13.0, (5.8, 7.6), (0.85, 1.2), present=0.45, jitter=0.5))
    return Stains(t.grain(h, 0.25), np.asarray(eosin, np.float32))


def stroma(t: Texturer, side: int) -> Stains:
    """Wavy collagen with few spindle nuclei: capsule, trabeculae."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    phase = 2 * np.pi * (3 * x + 9 * y) / side * round(side * t.mpp / 90) + 2.2 * t.noise(side, 30.0)
    eosin = np.clip(0.75 + 0.2 * np.sin(phase) + 0.12 * t.noise(side, 3.0), 0.05, 1.3)
    h = np.zeros((side, side), np.float32)
    spindles = Nuclei(17.0, (4.0, 5.5), (0.7, 1.0), (3.0, 6.0), present=0.4, jitter=0.5, aligned=True)
    t.draw_nuclei(h, spindles)
    return Stains(t.grain(h, 0.2), np.asarray(eosin, np.float32))


def fat(t: Texturer, side: int) -> Stains:
    """Empty round cells between thin walls."""
    points = t.places(side, 62 / t.mpp, 0.22)
    seeds = np.full((3 * side, 3 * side), 255, np.uint8)
    for dy in range(3):
        for dx in range(3):
            shifted = (points + [dx * side, dy * side]).astype(np.int64)
            inside = (shifted < 3 * side).all(axis=1)
            seeds[shifted[inside, 1], shifted[inside, 0]] = 0
    margin = side // 2
    window = seeds[side - margin : 2 * side + margin, side - margin : 2 * side + margin]
    small = cv2.resize(window, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    _, labels = cv2.distanceTransformWithLabels(
        np.where(small < 255, 0, 255).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_CCOMP
    )
    wall = cv2.morphologyEx(labels.astype(np.float32), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    edge = cv2.resize(wall.astype(np.float32), None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
    edge = edge[margin : margin + side, margin : margin + side]
    h = np.zeros((side, side), np.float32)
    t.draw_nuclei(h, Nuclei(25.0, (4.0, 6.0), (0.7, 1.0), (1.5, 4.0), present=0.5), edge > 0.5)
    return Stains(h, np.asarray(np.clip(edge, 0, 1) * 0.6, np.float32))


def tumour(t: Texturer, side: int) -> Stains:
    """Nests of large, pale, irregular nuclei with nucleoli and ample cytoplasm, some round lumina."""
    size, density = t.tumour_size, t.tumour_density
    septa = t.noise(side, 70.0) > 1.35
    lumen = t.noise(side, 55.0) > t.rng.uniform(1.7, 2.6)
    h = np.zeros((side, side), np.float32)
    cells = Nuclei(
        13.5 * size,
        (8.8 * size, 13.5 * size),
        (density - 0.12, density + 0.18),
        (1.0, 1.7),
        present=0.95,
        rim=0.28,
        nucleolus=0.45,
        jitter=0.28,
    )
    t.draw_nuclei(h, cells, ~(septa | lumen))
    t.draw_nuclei(h, Nuclei(11.0, (5.8, 7.5), (0.85, 1.2), present=0.35), septa)
    cytoplasm = np.clip(t.rng.uniform(0.5, 0.8) + 0.16 * t.noise(side, 5.0), 0.1, 1.2)
    eosin = np.where(lumen, 0.03, np.where(septa, 0.75 + 0.15 * t.noise(side, 4.0), cytoplasm))
    return Stains(t.grain(h, 0.34, 1.2), np.asarray(np.clip(eosin, 0, 1.4), np.float32))


def tumour_cells(t: Texturer, side: int) -> Stains:
    """Single tumour cells in the middle of squares of `LONE_UM`: stamps for isolated cells."""
    pitch = lone_px(t.mpp)
    h = np.zeros((side, side), np.float32)
    eosin = np.zeros((side, side), np.float32)
    for row in range(side // pitch):
        for col in range(side // pitch):
            middle = (np.array([col, row]) + 0.5) * pitch
            turn, r = t.rng.uniform(0, 180), t.rng.uniform(4.4, 6.4) * t.tumour_size / t.mpp
            stretch, density = t.rng.uniform(1.0, 1.25), t.tumour_density + t.rng.uniform(-0.1, 0.15)
            ellipse(eosin, middle, (8.6 / t.mpp, 7.4 / t.mpp), turn, t.rng.uniform(0.5, 0.8))
            ellipse(h, middle, (r * stretch, r / stretch), turn, density * 1.28)
            ellipse(h, middle, (r * stretch - 2.2, r / stretch - 2.2), turn, density * 0.72)
            ellipse(h, middle + r * 0.2, (r * 0.2, r * 0.2), 0, density + 0.45)
    return Stains(t.grain(h, 0.34, 1.2), eosin)


def lone_px(mpp: float) -> int:
    """Side of a single cell's square in pixels, even."""
    return 2 * round(LONE_UM / mpp / 2)


def blood(t: Texturer, side: int) -> Stains:
    """Packed red cells: eosin without nuclei."""
    eosin = np.full((side, side), 0.25, np.float32)
    for point in t.places(side, 6.6 / t.mpp, 0.3):
        density = t.rng.uniform(1.2, 1.7)
        for copy in wrapped(point, 4 / t.mpp, side):
            ellipse(eosin, copy, (3.1 / t.mpp, 2.8 / t.mpp), 0, density)
    return Stains(np.zeros((side, side), np.float32), eosin)


TISSUES: dict[str, tuple[Callable[[Texturer, int], Stains], int]] = {
    "lymphocytes": (lymphocytes, 2048),
    "germinal_centre": (germinal_centre, 1024),
    "sinus": (sinus, 1024),
    "stroma": (stroma, 1024),
    "fat": (fat, 1024),
    "tumour": (tumour, 2048),
    "tumour_cells": (tumour_cells, 640),
    "blood": (blood, 512),
}


@dataclass(frozen=True, slots=True)
class Staining:
    """One slide's stain: that of the scanner with a small deviation, as from day to day."""

    scanner: Scanner
    strength_h: float
    strength_e: float
    blur_px: float

    def colour(self, stains: Stains, rng: np.random.Generator) -> RgbImage:
        """The colours of stains, by Beer and Lambert's law, with the blur of the optics and the noise of the sensor."""
        side = stains.haematoxylin.shape[0]
        planes = [self.strength_h * stains.haematoxylin, self.strength_e * stains.eosin]
        pad = 8
        h, e = (
            cv2.GaussianBlur(np.pad(p, pad, mode="wrap"), (0, 0), self.blur_px)[pad:-pad, pad:-pad]
            for p in planes
        )
        noise = rng.standard_normal((side, side)).astype(np.float32) * 1.6
        rgb = np.empty((side, side, 3), np.uint8)
        for i in range(3):
            density = self.scanner.haematoxylin[i] * h + self.scanner.eosin[i] * e
            light = self.scanner.glass[i] * np.exp(-np.log(10) * density)
            rgb[..., i] = np.clip(light + noise, 0, 255)
        return rgb


def make_atlas(rng: np.random.Generator, staining: Staining) -> dict[str, RgbImage]:
    """Every tissue's texture in this slide's colours."""
    texturer = Texturer(rng, staining.scanner.mpp)
    return {name: staining.colour(draw(texturer, side), rng) for name, (draw, side) in TISSUES.items()}


def wrap_crop(texture: RgbImage, x0: int, y0: int, width: int, height: int) -> RgbImage:
    """A crop of the endless plane that the texture tiles."""
    side = texture.shape[0]
    rows = np.arange(y0, y0 + height) % side
    crop = np.empty((height, width, 3), np.uint8)
    x = 0
    while x < width:
        start = (x0 + x) % side
        step = min(side - start, width - x)
        crop[:, x : x + step] = texture[rows, start : start + step]
        x += step
    return crop
