"""Sampling, augmentation, the optimiser and a whole small run."""

from __future__ import annotations

import csv
import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from shapely import box

from models.card import ZOO, Architecture, ModelCard, read_card
from models.checkpoint import load_checkpoint, load_start
from models.networks.contract import normalise
from models.networks.inception import InceptionV3
from models.training.classify import Classify, classification_loss, train
from models.training.cross_validation import cross_validate
from models.training.data.augment import (
    AugmentConfig,
    Changes,
    augment,
    draw_changes,
    recolour,
    restain,
    turn,
)
from models.training.data.feed import Feed
from models.training.data.places import (
    GIVE_UP_AFTER,
    PatchSampler,
    SlideSampler,
    fit_square,
    read_hard_negatives,
)
from models.training.data.slides import PatchFrame, prepare_slide
from models.training.data.splits import fold_parts, slide_data
from models.training.optimiser import TensorFlowRMSprop
from models.training.progress import Listeners, Progress
from models.training.recipe import TrainConfig
from models.training.state import CHECKPOINT, TrainingState, average_of, use_bf16
from models.training.team import Team
from tests.slides import COMMAND
from wsi.datasets.patch_folder import NEGATIVE_LABEL, POSITIVE_LABEL, read_patches
from wsi.errors import ConfigError, ModelError, RegionError
from wsi.marks.annotations import Annotation, read_annotations, tumour_regions, write_asap
from wsi.metrics.ranking import auc, auc_interval, roc
from wsi.phantoms.lymph_node.slide import plan_cohort, write_manifest, write_phantom
from wsi.slides.manifest import SlideRow, read_manifest
from wsi.slides.source import SlideSource

WORDS = ("normal", "tumour")
OFF = AugmentConfig(orientations=1, brightness=0, saturation=0, hue=0, contrast=0, jitter_px=0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(cfg: AugmentConfig, n: int, seed: int = 0) -> Changes:
    return draw_changes(n, cfg, generator(seed))


def noise(n: int = 6, side: int = 9) -> torch.Tensor:
    return torch.randint(0, 256, (n, side, side, 3), generator=generator(), dtype=torch.uint8)


class TestAugment:
    def test_off_means_identity(self) -> None:
        assert torch.allclose(augment(noise(), OFF, draws(OFF, 6)), normalise(noise()), atol=2e-6)

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
        out = augment(noise(64), AugmentConfig(), draws(AugmentConfig(), 64))
        assert float(out.min()) >= -1
        assert float(out.max()) <= 1
        assert not torch.allclose(out, normalise(noise(64)), atol=0.05)

    def test_brightness_adds_up_to_64_of_255(self) -> None:
        grey = torch.full((500, 3, 2, 2), 0.0)
        cfg = OFF.model_copy(update={"brightness": 64 / 255})
        shift = recolour(grey, cfg, draws(cfg, 500).draws)[:, 0, 0, 0] * 127.5  # in grey levels
        assert 60 < float(shift.max()) <= 64.01
        assert -64.01 <= float(shift.min()) < -60

    def test_saturation_keeps_grey_and_scales_the_distance_from_it(self) -> None:
        cfg = OFF.model_copy(update={"saturation": 0.25})
        grey = torch.full((50, 3, 1, 1), 0.3)
        assert torch.allclose(recolour(grey, cfg, draws(cfg, 50).draws), grey, atol=1e-6)
        colour = torch.tensor([0.5, -0.2, 0.1])[None, :, None, None].expand(400, 3, 1, 1).contiguous()
        out = recolour(colour, cfg, draws(cfg, 400).draws)[:, :, 0, 0]
        luma = 0.299 * 0.5 - 0.587 * 0.2 + 0.114 * 0.1
        factor = (out[:, 0] - luma) / (0.5 - luma)
        assert 0.749 <= float(factor.min()) < 0.77
        assert 1.23 < float(factor.max()) <= 1.251

    def test_contrast_keeps_each_channel_s_mean(self) -> None:
        pixels = normalise(noise(8)) * 0.2
        out = recolour(pixels, OFF.model_copy(update={"contrast": 0.75}), draws(OFF, 8).draws)
        assert torch.allclose(out.mean(dim=(2, 3)), pixels.mean(dim=(2, 3)), atol=1e-4)
        spread = out.std(dim=(2, 3)) / pixels.std(dim=(2, 3))
        assert torch.allclose(spread[:, 0], spread[:, 1], atol=1e-3)
        assert float(spread.min()) < 0.8
        assert float(spread.max()) > 1.2

    def test_hue_keeps_luma_and_grey(self) -> None:
        cfg = OFF.model_copy(update={"hue": 0.04})
        pixels = normalise(noise(8)) * 0.3
        out = recolour(pixels, cfg, draws(cfg, 8).draws)
        weights = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
        assert torch.allclose((out * weights).sum(1), (pixels * weights).sum(1), atol=2e-3)
        assert not torch.allclose(out, pixels, atol=1e-2)

    def test_the_generator_decides(self) -> None:
        first, again, other = (
            augment(noise(), AugmentConfig(), draws(AugmentConfig(), 6, s)) for s in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_stain_factors_act_on_the_amount_of_each_stain(self) -> None:
        """A pure haematoxylin colour at twice its amount is that colour squared."""
        vector = torch.nn.functional.normalize(torch.tensor([0.65, 0.70, 0.29]), dim=0)
        light = torch.exp(-0.5 * vector)
        pixels = (2 * light - 1)[None, :, None, None].expand(1, 3, 2, 2).contiguous()
        out = restain(pixels, torch.tensor([[2.0, 1.0, 1.0]]), torch.zeros(1, 3))
        assert torch.allclose((out[0, :, 0, 0] + 1) / 2, light**2, atol=1e-5)
        same = restain(pixels, torch.tensor([[1.0, 3.0, 3.0]]), torch.zeros(1, 3))
        assert torch.allclose(same, pixels, atol=1e-4)


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


FRAME = PatchFrame(299, 128, 0.243)
RED_FRAME = PatchFrame(299, 128, 0.25)


class TestSampling:
    def test_cells_are_tumour_exactly_where_they_share_area_with_an_outline(self, cohort: Path) -> None:
        """Against a brute force over every point of a raster sixteen times as fine."""
        row = read_manifest(cohort)[0]
        slide = prepare_slide(row, FRAME)
        assert row.truth is not None
        area = tumour_regions(read_annotations(row.truth)).area
        marked = {tuple(c) for c in slide.cells[POSITIVE_LABEL].tolist()}
        assert marked
        assert marked.isdisjoint(tuple(c) for c in slide.cells[NEGATIVE_LABEL].tolist())
        x0, y0, x1, y1 = (int(v) for v in area.bounds)
        x, y = np.meshgrid(np.arange(x0 - 8, x1 + 16, 8) + 0.3, np.arange(y0 - 8, y1 + 16, 8) + 0.3)
        inside = shapely.contains_xy(area, x, y)
        brute = {(int(b // 128), int(a // 128)) for a, b in zip(x[inside], y[inside], strict=True)}
        assert brute <= marked
        for r, c in marked - brute:  # slivers that the raster misses
            assert area.intersection(box(c * 128, r * 128, c * 128 + 128, r * 128 + 128)).area > 0
        assert len(marked - brute) < 0.1 * len(marked)

    def test_touching_by_an_edge_is_not_tumour(self, tmp_path: Path, red_square: Path) -> None:
        write_asap(tmp_path / "t.xml", [Annotation(box(1280, 1024, 1408, 1152), "Tumor")])  # exactly one cell
        row = SlideRow(SlideSource(str(red_square)), truth=tmp_path / "t.xml")
        assert prepare_slide(row, RED_FRAME).cells[POSITIVE_LABEL].tolist() == [[8, 10]]

    def test_a_slide_without_truth_or_label_is_not_taken_for_normal(self, red_square: Path) -> None:
        row = SlideRow(SlideSource(str(red_square)))
        with pytest.raises(
            ConfigError, match="has no label and has no truth; fill in the column 'truth', or"
        ):
            prepare_slide(row, RED_FRAME)
        assert (
            len(prepare_slide(dataclasses.replace(row, label="normal"), RED_FRAME).cells[POSITIVE_LABEL]) == 0
        )

    def test_masks_that_differ_in_the_value_of_tumour_are_refused(
        self, tmp_path: Path, red_square: Path
    ) -> None:
        rows = []
        for name, value, split in (("a", 1, "train"), ("b", 255, "validation")):
            mask = np.zeros((96, 144), np.uint8)
            mask[40:44, 50:54] = value
            cv2.imwrite(str(tmp_path / f"{name}.png"), mask)
            path = shutil.copy(red_square, tmp_path / f"{name}.tif")
            rows.append(SlideRow(SlideSource(str(path)), truth=tmp_path / f"{name}.png", split=split))
        cfg = TrainConfig(name="x", spacing_um=0.25, validation_patches=4)
        with pytest.raises(
            ConfigError, match=r"the masks differ in .*: 1 \(a\) and 255 \(b\); say it with truth"
        ):
            slide_data(rows, cfg)
        twice = [dataclasses.replace(rows[0], split=split) for split in ("train", "validation")]
        with pytest.raises(ConfigError, match="is in both splits"):
            slide_data(twice, cfg)

    def test_partial_truth_gives_no_normal_cell(self, tmp_path: Path, red_square: Path) -> None:
        write_asap(tmp_path / "t.xml", [Annotation(box(1280, 1024, 1900, 1600), "Tumor")])
        row = SlideRow(SlideSource(str(red_square)), truth=tmp_path / "t.xml", partial=True)
        found = prepare_slide(row, RED_FRAME)
        assert len(found.cells[NEGATIVE_LABEL]) == 0
        assert len(found.cells[POSITIVE_LABEL]) == 25

    def test_classes_then_slides_then_places_are_drawn_alike(self, cohort: Path) -> None:
        slides = [prepare_slide(row, FRAME) for row in read_manifest(cohort)]
        sampler = SlideSampler(slides, np.random.default_rng(0), jitter_px=8, names=WORDS)
        places = [sampler.draw() for _ in range(3000)]
        assert np.mean([p.label for p in places]) == pytest.approx(0.5, abs=0.03)
        normal = [p.source for p in places if p.label == NEGATIVE_LABEL]
        for index in range(4):
            assert normal.count(index) / len(normal) == pytest.approx(0.25, abs=0.04)
        assert {p.source for p in places if p.label == POSITIVE_LABEL} == {0, 1}
        offsets = {(p.corner[0] + 85 + 8) % 128 for p in places}
        assert offsets == set(range(17))  # jitter of -8 to 8 px

    def test_one_generator_decides_everything(self, cohort: Path) -> None:
        slides = [prepare_slide(row, FRAME) for row in read_manifest(cohort)[:3]]

        def first(seed: int) -> list[np.ndarray]:
            with Feed(
                SlideSampler(slides, np.random.default_rng(seed), 8, names=WORDS), 4, Team(), threads=2
            ) as feed:
                return [feed.next().patches for _ in range(3)]

        for a, b in zip(first(1), first(1), strict=True):
            np.testing.assert_array_equal(a, b)
        assert any((a != b).any() for a, b in zip(first(1), first(2), strict=True))

    def test_the_state_after_a_batch_gives_the_next(self, cohort: Path) -> None:
        slides = [prepare_slide(row, FRAME) for row in read_manifest(cohort)[:3]]
        sampler = SlideSampler(slides, np.random.default_rng(1), 8, names=WORDS)
        with Feed(sampler, 4, Team()) as feed:
            after = feed.next().after
            wanted = feed.next()
        sampler.state = after
        with Feed(sampler, 4, Team()) as feed:
            np.testing.assert_array_equal(feed.next().patches, wanted.patches)

    def test_processes_share_one_batch(self, cohort: Path) -> None:
        slides = [prepare_slide(row, FRAME) for row in read_manifest(cohort)[:3]]

        def batch(rank: int, size: int) -> np.ndarray:
            team = Team(rank, size)
            sampler = SlideSampler(slides, np.random.default_rng(1), 8, names=WORDS)
            places = [sampler.draw() for _ in range(6)]
            return np.stack([sampler.read(places[i]) for i in team.share(6)])

        np.testing.assert_array_equal(batch(0, 1), np.concatenate([batch(r, 3) for r in range(3)]))

    def test_a_patch_is_its_region(self, cohort: Path) -> None:
        slide = prepare_slide(read_manifest(cohort)[0], FRAME)
        sampler = SlideSampler([slide], np.random.default_rng(0), names=WORDS)
        place = sampler.draw()
        row, col = place.cell
        assert place.corner == (col * 128 - 85, row * 128 - 85)
        np.testing.assert_array_equal(
            sampler.read(place), slide.slide.read_region(place.corner, 0, (299, 299))
        )

    def test_a_class_without_cells_is_named(self, cohort: Path) -> None:
        normal = [prepare_slide(row, FRAME) for row in read_manifest(cohort)[2:]]
        with pytest.raises(ConfigError, match="none of the 2 slides has a tumour cell"):
            SlideSampler(normal, np.random.default_rng(0), names=WORDS)
        with pytest.raises(ConfigError, match="none of the 2 slides has a feasible cell"):
            SlideSampler(normal, np.random.default_rng(0), names=("not feasible", "feasible"))

    def test_hard_negatives_get_their_share_of_the_normal_draws(self, cohort: Path) -> None:
        slides = [prepare_slide(row, FRAME) for row in read_manifest(cohort)[:3]]
        row, col = slides[2].cells[NEGATIVE_LABEL][17]
        tumour_row, tumour_col = slides[0].cells[POSITIVE_LABEL][0]
        listed = [
            (slides[2].name, int(col) * 128, int(row) * 128),
            (slides[0].name, int(tumour_col) * 128, int(tumour_row) * 128),  # is tumour: not taken
            ("another slide", 0, 0),
        ]
        sampler = SlideSampler(slides, np.random.default_rng(0), names=WORDS, hard=listed, hard_share=0.3)
        assert sampler.hard == [(2, int(row), int(col))]
        places = [p for p in (sampler.draw() for _ in range(2000)) if p.label == NEGATIVE_LABEL]
        share = np.mean([p.source == 2 and p.cell == (row, col) for p in places])
        assert share == pytest.approx(0.3, abs=0.05)

    def test_a_list_of_other_columns_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "l.csv").write_text("a,b\n1,2\n")
        with pytest.raises(ConfigError, match="not a list of hard negatives"):
            read_hard_negatives(tmp_path / "l.csv")


class TestUnreadable:
    @pytest.fixture
    @staticmethod
    def rows(broken_tile: Path, red_square: Path, tmp_path: Path) -> list[SlideRow]:
        write_asap(tmp_path / "t.xml", [Annotation(box(1280, 1024, 1900, 1600), "Tumor")])
        return [SlideRow(SlideSource(str(p)), truth=tmp_path / "t.xml") for p in (broken_tile, red_square)]

    def test_a_broken_tile_costs_its_cells_and_the_rest_is_the_same_again(
        self, rows: list[SlideRow], caplog: pytest.LogCaptureFixture
    ) -> None:
        def run(
            steps: int, resume: tuple[object, list[list[int]]] | None = None
        ) -> tuple[list, object, list]:
            slides = [prepare_slide(row, RED_FRAME) for row in rows]
            sampler = SlideSampler(slides, np.random.default_rng(5), 8, names=WORDS)
            if resume is not None:
                sampler.exclude_all(resume[1])
                sampler.state = resume[0]
            with Feed(sampler, 8, Team(), threads=2) as feed:
                batches = [feed.next() for _ in range(steps)]
            return [b.patches for b in batches], batches[-1].after, list(sampler.excluded)

        whole, _, excluded = run(24)
        assert 0 < len(excluded) < 40
        assert all(index == 0 for index, *_ in excluded)
        assert "broken tile: a place cannot be decoded" in caplog.text
        first, state, lost = run(9)
        second, _, _ = run(15, (state, lost))
        for a, b in zip(whole, first + second, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_a_slide_that_cannot_be_read_any_more_is_dropped(
        self, rows: list[SlideRow], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        slides = [prepare_slide(row, RED_FRAME) for row in rows]
        sampler = SlideSampler(slides, np.random.default_rng(5), names=WORDS)

        def fail(location: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
            raise RegionError("the disk is gone")

        monkeypatch.setattr(slides[0].slide, "read_region", fail)
        with Feed(sampler, 8, Team()) as feed:
            for _ in range(3):
                feed.next()
        assert len(sampler.excluded) == GIVE_UP_AFTER
        assert "the slide is dropped" in caplog.text
        assert {sampler.draw().source for _ in range(50)} == {1}
        monkeypatch.setattr(slides[1].slide, "read_region", fail)
        with Feed(sampler, 8, Team()) as feed, pytest.raises(ConfigError, match="has a (normal|tumour) cell"):
            feed.next()


def reference_gradients(
    network: InceptionV3, pixels: torch.Tensor, labels: torch.Tensor
) -> list[torch.Tensor]:
    """Cross-entropy written out, main head and 0.4 of the auxiliary one, in fp32."""
    network.train()
    main, aux = network.forward_train(pixels)
    rows = torch.arange(len(labels))
    losses = [-(x - x.exp().sum(1, keepdim=True).log())[rows, labels].mean() for x in (main, aux)]
    return list(torch.autograd.grad(losses[0] + 0.4 * losses[1], list(network.parameters())))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_step_has_the_gradient_of_a_plain_reference(precision: str) -> None:
    """In bf16 the output layer's direction alone: the batch statistics of four patches make the rest chaotic."""
    torch.manual_seed(0)
    network = InceptionV3(2, width=0.0625, dropout=0.0)
    coarse, labels = torch.rand(4, 3, 12, 12) * 2 - 1, torch.tensor([0, 1, 1, 0])
    pixels = torch.nn.functional.interpolate(coarse, (299, 299), mode="bilinear")
    pixels = pixels.contiguous(
        memory_format=torch.channels_last
    )  # another order of sums differs by some per cent
    wanted = reference_gradients(network, pixels, labels)
    cfg = TrainConfig(name="x", batch=4, dropout=0.0, precision=precision)  # type: ignore[arg-type]
    state = TrainingState(network, torch.optim.SGD(network.parameters(), lr=0.0), None, generator())  # type: ignore[arg-type]
    task = Classify(None, cfg, Path(), "", Team(), torch.device("cpu"))  # type: ignore[arg-type]
    task.loss_of(state, pixels, labels).backward()
    got = [p.grad for p in network.parameters()]
    names = [name for name, _ in network.named_parameters()]
    for name, mine, theirs in zip(names, got, wanted, strict=True):
        assert mine is not None
        if precision == "fp32":
            assert float((mine - theirs).norm()) < 1e-4 * max(float(theirs.norm()), 1e-3), name
        elif name == "fc.weight":
            assert torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0) > 0.8


def test_focal_loss_by_hand() -> None:
    """p = 0.8 of the true class: (1 - 0.8)^2 * -ln 0.8 = 0.04 * 0.22314."""
    logits = torch.log(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
    labels = torch.tensor([0, 1])
    assert float(classification_loss(logits, labels, 2.0)) == pytest.approx(0.04 * 0.223144, rel=1e-4)
    assert float(classification_loss(logits, labels)) == pytest.approx(0.223144, rel=1e-4)


def test_the_learning_rate_follows_the_paper() -> None:
    cfg = TrainConfig(name="x")
    assert [cfg.rate(n) for n in (0, 1_999_999, 2_000_000, 4_000_000)] == [0.05, 0.05, 0.025, 0.0125]
    assert TrainConfig(name="x", init=Path("w.pth")).rate(0) == 0.002
    cosine = TrainConfig(name="x", schedule="cosine", examples=3200, learning_rate=1.0)
    assert cosine.rate(0) == pytest.approx(0.2)  # a fifth of the rise after one batch of five
    assert cosine.rate(1600) == pytest.approx(0.5)
    assert cosine.rate(3199) < 1e-5


def test_bf16_is_used_where_the_processor_has_it() -> None:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    assert use_bf16("auto", torch.device("cpu")) == ("avx512_bf16" in flags)
    assert use_bf16("bf16", torch.device("cpu"))
    assert not use_bf16("fp32", torch.device("cpu"))


def test_the_average_of_weights_by_hand() -> None:
    """Each network counts a quarter: 1, then 0.75 * 1 + 0.25 * 5 = 2, then 0.75 * 2 + 0.25 * 10 = 4."""
    network = torch.nn.BatchNorm1d(1)
    average = average_of(network, 0.25)
    for weight, mean, kept, kept_mean in ((1.0, 2.0, 1.0, 2.0), (5.0, 4.0, 2.0, 2.5), (10.0, 8.5, 4.0, 4.0)):
        network.weight.data.fill_(weight)
        network.running_mean.fill_(mean)  # type: ignore[union-attr]
        average.update_parameters(network)
        assert float(average.module.weight.detach()) == pytest.approx(kept)
        assert float(average.module.running_mean) == pytest.approx(kept_mean)  # type: ignore[arg-type]


class _StopError(Exception):
    """A run that dies in the middle."""


class TestRun:
    CFG = TrainConfig(
        name="tiny",
        width=0.0625,
        batch=8,
        examples=48,
        validate_every=16,
        validation_patches=16,
        checkpoint_every=16,
        learning_rate=0.001,
        precision="fp32",
        demonstration=True,
        limits="a test",
    )

    def run(self, cohort: Path, out: Path, cfg: TrainConfig | None = None, **options: object) -> float:
        cfg = cfg or self.CFG
        data = slide_data(read_manifest(cohort), cfg)
        return train(data, cfg, out, code_version="v", **options)  # type: ignore[arg-type]

    @pytest.mark.slow
    def test_a_run_writes_model_and_metrics_and_is_the_same_after_stops(
        self, cohort: Path, tmp_path: Path
    ) -> None:
        cfg = self.CFG.model_copy(update={"average": 24})  # the average goes on after a stop, too
        seen: list[Progress] = []
        shown: list[np.ndarray] = []
        listeners = Listeners(report=seen.append, show=lambda patches, labels: shown.append(patches))
        best = self.run(cohort, tmp_path / "a", cfg, listeners=listeners)
        assert [p.examples for p in seen if p.quality is None] == [8, 16, 24, 32, 40, 48]
        assert shown[0].shape == (32, 299, 299, 3)
        card = read_card(tmp_path / "a" / "model", ModelCard)
        assert card.metrics["validation_patch_auc"] == pytest.approx(best, abs=1e-6)
        assert card.demonstration
        assert card.training["recipe"]["batch"] == 8
        assert card.training["split"]["train"]["slides"] == 3
        with (tmp_path / "a" / "metrics.csv").open() as file:
            assert [row["examples"] for row in csv.DictReader(file)] == ["16", "32", "48"]

        # stopped politely after 24 examples, then killed after 40, 8 past the checkpoint at 32
        count = iter(range(100))
        polite = Listeners(stop=lambda: next(count) == 2)
        with pytest.raises(KeyboardInterrupt):
            self.run(cohort, tmp_path / "b", cfg, listeners=polite)

        def die(p: Progress) -> None:
            if p.examples == 40:
                raise _StopError

        with pytest.raises(_StopError):
            self.run(cohort, tmp_path / "b", cfg, listeners=Listeners(report=die), resume=True)
        assert self.run(cohort, tmp_path / "b", cfg, resume=True) == best
        a, b = (load_file(tmp_path / x / CHECKPOINT) for x in "ab")
        assert a.keys() == b.keys()
        assert any(key.startswith("average.") for key in a)
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert read_card(tmp_path / "b" / "model", ModelCard).sha256 == card.sha256
        tables = []
        for name in "ab":
            with (tmp_path / name / "metrics.csv").open() as file:
                rows = list(csv.DictReader(file))
            assert all(float(row["loss"]) > 0 for row in rows)
            tables.append([(row["examples"], row["loss"], row["auc"]) for row in rows])
        assert tables[0] == tables[1]  # the running loss goes on where it was, too

    @pytest.mark.slow
    def test_the_second_phase_moves_the_output_layer_alone(self, cohort: Path, tmp_path: Path) -> None:
        cfg = self.CFG.model_copy(update={"examples": 16, "second_phase": 16})
        said: list[str] = []
        first: dict[str, torch.Tensor] = {}

        def keep(p: Progress) -> None:
            if p.examples == 24 and not first:
                first.update(load_file(tmp_path / CHECKPOINT))  # written at the end of the first phase

        self.run(cohort, tmp_path, cfg, listeners=Listeners(say=said.append, report=keep))
        last = load_file(tmp_path / CHECKPOINT)
        changed = {k for k in last if k.startswith("network.") and not torch.equal(first[k], last[k])}
        assert changed == {"network.fc.weight", "network.fc.bias"}
        assert "of the draws are tumor" in said[-1]

    def test_a_loss_that_is_not_finite_stops_the_run(self, cohort: Path, tmp_path: Path) -> None:
        wild = self.CFG.model_copy(update={"learning_rate": 1e30})
        with pytest.raises(ModelError, match=r"the loss became .* lower learning_rate"):
            self.run(cohort, tmp_path, wild)

    def test_a_split_without_slides_is_named(self, cohort: Path) -> None:
        rows = [row for row in read_manifest(cohort) if row.split == "train"]
        with pytest.raises(ConfigError, match="no slide's split is 'validation'"):
            slide_data(rows, self.CFG)


class TestCheckpointToResume:
    def state(self, width: float = 0.0625) -> TrainingState:
        network = InceptionV3(2, width=width)
        optimiser = TensorFlowRMSprop(network.parameters(), lr=0.1)

        class NoSampler:
            state, excluded = 1, ()

            def exclude_all(self, places: object) -> None:
                pass

        return TrainingState(network, optimiser, NoSampler(), generator())  # type: ignore[arg-type]

    def test_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="there is no run to resume"):
            self.state().load(tmp_path, {})

    def test_another_recipe_is_named(self, tmp_path: Path) -> None:
        self.state().save(tmp_path, {"batch": 8})
        with pytest.raises(ModelError, match="was written with batch 8, the recipe now says 16"):
            self.state().load(tmp_path, {"batch": 16})

    def test_another_architecture_is_refused(self, tmp_path: Path) -> None:
        self.state().save(tmp_path, {})
        with pytest.raises(ModelError, match="another architecture"):
            self.state(0.125).load(tmp_path, {})

    def test_a_file_cut_short_is_refused(self, tmp_path: Path) -> None:
        self.state().save(tmp_path, {})
        path = tmp_path / CHECKPOINT
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(ModelError, match="not a whole checkpoint"):
            self.state().load(tmp_path, {})

    def test_a_start_of_another_width_is_named(self) -> None:
        with pytest.raises(ModelError, match="set architecture to inception_v3 and width to 0.1875"):
            load_start(InceptionV3(2, width=0.125), Architecture(width=0.125), ZOO / "lymph-node-demo")

    def test_a_start_takes_all_but_the_output_layers(self) -> None:
        network = InceptionV3(2, width=0.1875)
        own = network.fc.weight.clone()
        load_start(network, Architecture(width=0.1875), ZOO / "lymph-node-demo")
        theirs, _ = load_checkpoint(ZOO / "lymph-node-demo")
        assert isinstance(theirs, InceptionV3)
        assert torch.equal(network.Mixed_7c.branch1x1.conv.weight, theirs.Mixed_7c.branch1x1.conv.weight)
        assert torch.equal(network.fc.weight, own)


class TestPatches:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """12 patches of 64 px: normal ones bluish, tumour reddish."""
        root = tmp_path_factory.mktemp("patches")
        rng = np.random.default_rng(0)
        for k, name in enumerate(("normal", "tumor")):
            (root / name).mkdir()
            for i in range(6):
                image = rng.integers(0, 90, (64, 64, 3)).astype(np.uint8)
                image[..., 2 if k else 0] += 150  # cv2 writes blue first
                cv2.imwrite(str(root / name / f"{i}.png"), image)
        return root

    def test_a_small_patch_is_mirrored_to_the_network_s_size(self) -> None:
        patch = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
        whole = fit_square(patch, 299, (3, -2))
        assert whole.shape == (299, 299, 3)
        # 43 px are missing: 22 above and 21 below; the window moves 2 up and 3 right
        np.testing.assert_array_equal(whole[24 : 24 + 256, 19 : 19 + 256], patch)
        np.testing.assert_array_equal(whole[24 - 1], whole[24 + 1])  # the row above is the mirrored one below
        np.testing.assert_array_equal(fit_square(patch, 100), patch[78:178, 78:178])

    def test_folds_are_contiguous_in_each_class(self, folder: Path) -> None:
        parts = fold_parts(read_patches(folder), 3)
        assert sorted(i for part in parts for i in part) == list(range(12))
        assert parts[0] == [0, 1, 6, 7]

    def test_both_classes_are_drawn_alike(self, folder: Path) -> None:
        patches = read_patches(folder)
        sampler = PatchSampler(patches, [0, 1, 2, 3, 4, 5, 6], 299, np.random.default_rng(0), 8, names=WORDS)
        labels = [sampler.draw().label for _ in range(1000)]
        assert np.mean(labels) == pytest.approx(0.5, abs=0.05)
        assert sampler.frequency == pytest.approx(1 / 7)

    def test_a_class_without_patches_is_named_by_the_recipe_s_word(self, folder: Path) -> None:
        patches, rng = read_patches(folder), np.random.default_rng(0)
        with pytest.raises(ConfigError, match="none of the 2 patches is tumour; add patches"):
            PatchSampler(patches, [0, 1], 299, rng, 8, names=WORDS)
        with pytest.raises(ConfigError, match="none of the 2 patches is stroma; add patches"):
            PatchSampler(patches, [6, 7], 299, rng, 8, names=("stroma", "vessel"))

    @pytest.mark.slow
    def test_cross_validation_scores_every_patch_by_a_network_that_has_not_seen_it(
        self, folder: Path, tmp_path: Path
    ) -> None:
        patches = read_patches(folder)
        cfg = TestRun.CFG.model_copy(update={"folds": 2, "examples": 16, "patches": folder})
        quiet = [Listeners()] * 2
        result = cross_validate(patches, cfg, tmp_path, code_version="v", resume=False, listeners=quiet)
        assert np.isfinite(result.scores).all()
        assert result.fold.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [1] * 3
        card = read_card(tmp_path / "fold_2" / "model", ModelCard)
        assert card.training["fold"] == "2 of 2, held out"
        assert card.training["split"]["train"] == {"normal": 3, "tumour": 3}
        again = cross_validate(patches, cfg, tmp_path, code_version="v", resume=True, listeners=quiet)
        np.testing.assert_array_equal(again.scores, result.scores)


@pytest.mark.slow
def test_two_processes_lose_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """Two by torchrun (gloo) share a batch of 8; one process takes it whole.

    One step: rounding differs, and batch statistics of eight patches make it grow to everything within four.
    """
    rng = np.random.default_rng(0)
    for name in ("normal", "tumor"):
        (tmp_path / "patches" / name).mkdir(parents=True)
        for i in range(6):
            image = cv2.resize(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8), (256, 256))
            cv2.imwrite(str(tmp_path / "patches" / name / f"{i}.png"), image)
    recipe = (
        "name: x\nwidth: 0.0625\nbatch: 8\nexamples: 8\nvalidate_every: 8\ndropout: 0.0\nprecision: fp32\n"
    )
    (tmp_path / "c.yaml").write_text(f"{recipe}learning_rate: 0.001\npatches: {tmp_path / 'patches'}\n")
    losses = []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    for out, launcher in (("one", []), ("two", torchrun)):
        words = [*launcher, COMMAND, "train", "classifier", str(tmp_path / "c.yaml")]
        done = subprocess.run(
            [*words, "--out", str(tmp_path / out)],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        with (tmp_path / out / "metrics.csv").open() as file:
            losses.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert len(losses[0]) == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = (load_file(tmp_path / out / CHECKPOINT) for out in ("one", "two"))
    name = "network.Conv2d_1a_3x3.bn.running_var"
    assert torch.allclose(one[name], two[name], rtol=1e-3)
    steps = [torch.cat([v.flatten() for k, v in x.items() if k.endswith(".momentum")]) for x in (one, two)]
    assert torch.cosine_similarity(*steps, dim=0) > 0.97
    assert float(steps[1].norm() / steps[0].norm()) == pytest.approx(
        1, abs=0.1
    )  # a sum for a mean would give 2


def test_the_interval_holds_the_auc_and_narrows_with_more_patches() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (40, 640):
        positive = np.arange(n) % 2 == 0
        scores = rng.normal(positive * 1.0, 1.0)
        low, high = auc_interval(positive, scores)
        assert low < auc(positive, scores) < high
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]
    assert auc_interval(positive, scores) == auc_interval(positive, scores)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=30))
def test_the_area_under_the_roc_curve_is_the_auc(items: list[tuple[bool, int]]) -> None:
    positive = np.array([p for p, _ in items])
    scores = np.array([s for _, s in items], float)
    if 0 < positive.sum() < len(positive):
        assert np.trapezoid(*roc(positive, scores)[::-1]) == pytest.approx(auc(positive, scores))
