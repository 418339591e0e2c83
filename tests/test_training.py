"""Sampling, augmentation, the optimiser and a whole small run."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shapely import Point, box

from models.augment import AugmentConfig, augment, recolour, turn
from models.card import read_card
from models.checkpoint import load_checkpoint
from models.network import normalise
from models.optimiser import TensorFlowRMSprop
from models.sampling import NORMAL, TUMOUR, Sampler, batches, prepare_slide, read_patch
from models.train_classifier import Progress, TrainConfig, train
from wsi.annotations import Annotation, read_annotations, tumour_regions, write_asap
from wsi.errors import ConfigError, ModelError
from wsi.manifest import SlideRow, read_manifest
from wsi.metrics import auc
from wsi.phantom.lymph_node import plan_cohort, write_manifest, write_phantom
from wsi.source import SlideSource

OFF = AugmentConfig(orientations=1, brightness=0, saturation=0, hue=0, contrast=0, jitter_px=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(n: int = 6, side: int = 9) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), generator=generator(), dtype=torch.uint8)


class TestAugment:
    def test_off_means_identity(self) -> None:
        assert torch.allclose(augment(noise(), OFF, generator()), normalise(noise()), atol=2e-6)

    def test_a_turn_is_a_turn(self) -> None:
        patches = noise(16)
        turned = turn(patches, torch.arange(16) % 8)
        for i in range(16):
            every = [
                np.rot90(p, k) for p in (patches[i].numpy(), patches[i].numpy()[:, ::-1]) for k in range(4)
            ]
            matches = [np.array_equal(turned[i].numpy(), one) for one in every]
            assert sum(matches) == 1
        assert len({turned[i].numpy().tobytes() for i in range(8)}) == 8

    def test_colours_stay_in_bounds_and_do_change(self) -> None:
        out = augment(noise(64), AugmentConfig(), generator())
        assert float(out.min()) >= -1
        assert float(out.max()) <= 1
        assert not torch.allclose(out, normalise(noise(64)), atol=0.05)

    def test_brightness_adds_up_to_64_of_255(self) -> None:
        grey = torch.full((500, 3, 2, 2), 0.0)
        cfg = OFF.model_copy(update={"brightness": 64 / 255})
        shift = recolour(grey, cfg, generator())[:, 0, 0, 0] * 127.5  # in grey levels
        assert 60 < float(shift.max()) <= 64.01
        assert -64.01 <= float(shift.min()) < -60

    def test_saturation_keeps_grey_and_scales_the_distance_from_it(self) -> None:
        cfg = OFF.model_copy(update={"saturation": 0.25})
        grey = torch.full((50, 3, 1, 1), 0.3)
        assert torch.allclose(recolour(grey, cfg, generator()), grey, atol=1e-6)
        colour = torch.tensor([0.5, -0.2, 0.1])[None, :, None, None].expand(400, 3, 1, 1).contiguous()
        out = recolour(colour, cfg, generator())[:, :, 0, 0]
        luma = 0.299 * 0.5 - 0.587 * 0.2 + 0.114 * 0.1
        factor = (out[:, 0] - luma) / (0.5 - luma)
        assert 0.749 <= float(factor.min()) < 0.77
        assert 1.23 < float(factor.max()) <= 1.251

    def test_contrast_keeps_each_channel_s_mean(self) -> None:
        pixels = normalise(noise(8)) * 0.2
        out = recolour(pixels, OFF.model_copy(update={"contrast": 0.75}), generator())
        assert torch.allclose(out.mean(dim=(2, 3)), pixels.mean(dim=(2, 3)), atol=1e-4)
        spread = out.std(dim=(2, 3)) / pixels.std(dim=(2, 3))
        assert torch.allclose(spread[:, 0], spread[:, 1], atol=1e-3)
        assert float(spread.min()) < 0.8
        assert float(spread.max()) > 1.2

    def test_hue_keeps_luma_and_grey(self) -> None:
        cfg = OFF.model_copy(update={"hue": 0.04})
        pixels = normalise(noise(8)) * 0.3
        out = recolour(pixels, cfg, generator())
        weights = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
        assert torch.allclose((out * weights).sum(1), (pixels * weights).sum(1), atol=2e-3)
        assert not torch.allclose(out, pixels, atol=1e-2)

    def test_the_generator_decides(self) -> None:
        first, again, other = (augment(noise(), AugmentConfig(), generator(s)) for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_rmsprop_is_tensorflow_s_by_hand() -> None:
    """lr .1, decay .9, momentum .5, epsilon 1; ms starts at 1; gradients 2 then -1.

    ms = .9 + .1 * 4 = 1.3; m = .1 * 2 / sqrt(2.3) = .131876; p = 1 - .131876 = .868124
    ms = 1.17 + .1 = 1.27; m = .065938 - .1 / sqrt(2.27) = -.000434; p = .868558
    """
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimiser = TensorFlowRMSprop([parameter], lr=0.1, decay=0.9, momentum=0.5, epsilon=1.0)
    values = []
    for gradient in (2.0, -1.0):
        parameter.grad = torch.tensor([gradient])
        optimiser.step()
        values.append(float(parameter.detach()))
    assert values == pytest.approx([0.868124, 0.868558], abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30))
def test_auc_is_the_share_of_pairs_won(items: list[tuple[bool, int]]) -> None:
    positive = np.array([p for p, _ in items])
    scores = np.array([s for _, s in items], float)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    if pairs:
        assert auc(positive, scores) == pytest.approx(np.mean(pairs))
    else:
        assert np.isnan(auc(positive, scores))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small phantoms: three to train on, one tumour slide to validate on."""
    out = tmp_path_factory.mktemp("cohort")
    slides = plan_cohort(4, 3, (4608, 4096), 0.5)
    for slide in slides:
        write_phantom(slide, out)
    write_manifest(out, slides, ["train", "validation", "train", "train"])
    return out / "slides.csv"


class TestSampling:
    def test_cells_are_tumour_exactly_where_they_share_area_with_an_outline(self, cohort: Path) -> None:
        """Against a brute force over points of a fine raster."""
        row = read_manifest(cohort)[0]
        slide = prepare_slide(row, 299, 128, 0.243)
        assert row.truth is not None
        area = tumour_regions(read_annotations(row.truth)).area
        marked = {tuple(c) for c in slide.cells[TUMOUR].tolist()}
        assert marked
        assert marked.isdisjoint(tuple(c) for c in slide.cells[NORMAL].tolist())
        rng = np.random.default_rng(0)
        x0, y0, x1, y1 = area.bounds
        for x, y in rng.uniform([x0 - 200, y0 - 200], [x1 + 200, y1 + 200], (400, 2)):
            if area.contains(Point(x, y)):
                assert (int(y // 128), int(x // 128)) in marked
        for r, c in list(marked)[:200]:
            assert area.intersection(box(c * 128, r * 128, c * 128 + 128, r * 128 + 128)).area > 0

    def test_touching_by_an_edge_is_not_tumour(self, tmp_path: Path, red_square: Path) -> None:
        write_asap(tmp_path / "t.xml", [Annotation(box(1280, 1024, 1408, 1152), "Tumor")])  # exactly one cell
        row = SlideRow(SlideSource(str(red_square)), truth=tmp_path / "t.xml")
        assert prepare_slide(row, 299, 128, 0.25).cells[TUMOUR].tolist() == [[8, 10]]

    def test_classes_then_slides_then_places_are_drawn_alike(self, cohort: Path) -> None:
        slides = [prepare_slide(row, 299, 128, 0.243) for row in read_manifest(cohort)]
        sampler = Sampler(slides, np.random.default_rng(0), jitter_px=8)
        places = [sampler.draw() for _ in range(3000)]
        assert np.mean([p.label for p in places]) == pytest.approx(0.5, abs=0.03)
        normal = [p.slide for p in places if p.label == NORMAL]
        for index in range(4):
            assert normal.count(index) / len(normal) == pytest.approx(0.25, abs=0.04)
        assert {p.slide for p in places if p.label == TUMOUR} == {0, 1}
        offsets = {(p.corner[0] + 85 + 8) % 128 for p in places}
        assert offsets == set(range(17))  # jitter of -8 to 8 px

    def test_one_generator_decides_everything(self, cohort: Path) -> None:
        slides = [prepare_slide(row, 299, 128, 0.243) for row in read_manifest(cohort)[:3]]

        def first(seed: int) -> list[np.ndarray]:
            sampler = Sampler(slides, np.random.default_rng(seed), 8)
            stream = batches(slides, sampler.draw, 4, threads=2)
            return [b.patches for b in islice(stream, 3)]

        for a, b in zip(first(1), first(1), strict=True):
            np.testing.assert_array_equal(a, b)
        assert any((a != b).any() for a, b in zip(first(1), first(2), strict=True))

    def test_a_patch_is_its_region(self, cohort: Path) -> None:
        slide = prepare_slide(read_manifest(cohort)[0], 299, 128, 0.243)
        np.testing.assert_array_equal(
            read_patch(slide, (777, 900)), slide.slide.read_region((777, 900), 0, (299, 299))
        )

    def test_a_class_without_cells_is_named(self, cohort: Path) -> None:
        normal = [prepare_slide(row, 299, 128, 0.243) for row in read_manifest(cohort)[2:]]
        with pytest.raises(ConfigError, match="none of the 2 slides has a tumour cell"):
            Sampler(normal, np.random.default_rng(0))


class TestRun:
    CFG = TrainConfig(
        name="tiny",
        width=0.0625,
        batch=8,
        examples=32,
        validate_every=16,
        validation_patches=16,
        learning_rate=0.001,
        demonstration=True,
        limits="a test",
    )

    @pytest.mark.slow
    def test_a_run_writes_model_and_metrics_and_is_the_same_again(self, cohort: Path, tmp_path: Path) -> None:
        seen: list[Progress] = []
        best = train(read_manifest(cohort), self.CFG, tmp_path / "a", code_version="v", report=seen.append)
        assert [p.examples for p in seen if p.auc is None] == [8, 16, 24, 32]
        card = read_card(tmp_path / "a" / "model")
        assert card.metrics["validation_patch_auc"] == pytest.approx(best, abs=1e-6)
        assert card.demonstration
        assert card.training["recipe"]["batch"] == 8
        with (tmp_path / "a" / "metrics.csv").open() as file:
            assert [row["examples"] for row in csv.DictReader(file)] == ["16", "32"]
        again = train(read_manifest(cohort), self.CFG, tmp_path / "b", code_version="v")
        assert again == best
        assert read_card(tmp_path / "b" / "model").sha256 == card.sha256
        load_checkpoint(tmp_path / "a" / "model")

    def test_a_loss_that_is_not_finite_stops_the_run(self, cohort: Path, tmp_path: Path) -> None:
        wild = self.CFG.model_copy(update={"learning_rate": 1e30})
        with pytest.raises(ModelError, match=r"the loss became .* lower learning_rate"):
            train(read_manifest(cohort), wild, tmp_path, code_version="v")

    def test_a_split_without_slides_is_named(self, cohort: Path, tmp_path: Path) -> None:
        rows = [row for row in read_manifest(cohort) if row.split == "train"]
        with pytest.raises(ConfigError, match="no slide whose split is 'validation'"):
            train(rows, self.CFG, tmp_path, code_version="v")
