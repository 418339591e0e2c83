"""The training of segmenters through the one loop: what is learned, what is kept, and going on to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.card import SegmenterCard, SegmenterConfig, read_card
from models.checkpoint import load_segmenter
from models.training.data.augment import AugmentConfig
from models.training.progress import Listeners
from models.training.recipe import SegmenterTrainConfig
from models.training.segment import map_loss, train_segmenter
from tests.models.training.test_areas import outline, square, truth
from tests.slides import write_pyramid
from wsi.errors import ConfigError, ModelError
from wsi.metrics.segmentation import UNKNOWN
from wsi.slides.manifest import SlideRow
from wsi.slides.source import SlideSource

PLAIN = AugmentConfig(brightness=0.05, saturation=0, hue=0, contrast=0, stain=0.05)


def config(**changes: Any) -> SegmenterTrainConfig:
    shape = SegmenterConfig(
        classes=("glass", "red"), network="fcn_8s", width=8, spacing_um=0.5, core_px=48, margin_px=8
    )
    values = {"name": "t", "segmenter": shape, "batch": 4, "examples": 240, "validation_tiles": 12}
    values |= {"validate_every": 120, "checkpoint_every": 60, "augment": PLAIN, "precision": "fp32"}
    return SegmenterTrainConfig.model_validate(values | {"learning_rate": 0.01} | changes)


def rows(folder: Path) -> list[SlideRow]:
    made = []
    for i, split in enumerate(("train", "validation")):
        pixels = np.full((500, 700, 3), 240, np.uint8)
        places = [(60 + 40 * i, 80, 90), (300, 220 - 30 * i, 120), (520, 40, 70)]
        for x, y, side in places:
            pixels[y : y + side, x : x + side] = (190, 60, 70)
        slide = write_pyramid(folder / f"s{i}.tif", pixels)
        path = truth(folder / f"s{i}.geojson", *(outline("red", *square(*place)) for place in places))
        made.append(SlideRow(SlideSource(str(slide)), truth=path, split=split))
    return made


class TestLoss:
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(0, 3, (2, 4, 5), generator=torch.Generator().manual_seed(1))

    def test_without_weights_it_is_cross_entropy(self) -> None:
        ours = map_loss(self.logits, self.classes, torch.ones(2, 4, 5))
        torch.testing.assert_close(ours, F.cross_entropy(self.logits, self.classes))

    def test_unknown_pixels_and_weights(self) -> None:
        classes, weights = self.classes.clone(), torch.zeros(2, 4, 5)
        classes[0, 0, 0] = UNKNOWN
        weights[0, 0, 0] = 100.0
        weights[1, 2, 3], weights[0, 1, 1] = 3.0, 1.0
        one, two = (
            F.cross_entropy(self.logits[i, :, r, c][None], classes[i, r, c][None])
            for i, r, c in ((1, 2, 3), (0, 1, 1))
        )
        torch.testing.assert_close(map_loss(self.logits, classes, weights), (3 * one + two) / 4)
        nothing = torch.full_like(classes, UNKNOWN)
        assert float(map_loss(self.logits, nothing, weights)) == 0

    def test_focal_loss_by_hand(self) -> None:
        logits = torch.log(torch.tensor([0.9, 0.1])).reshape(1, 2, 1, 1)
        loss = map_loss(logits, torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1), gamma=2)
        assert float(loss) == pytest.approx(-(0.1**2) * np.log(0.9), rel=1e-4)


@pytest.mark.slow
class TestTraining:
    def test_it_learns_what_outlines_mark(self, tmp_path: Path) -> None:
        best = train_segmenter(rows(tmp_path), config(), tmp_path / "out", code_version="c")
        assert best > 0.85
        card = read_card(tmp_path / "out" / "model", SegmenterCard)
        assert card.metrics["IoU"].keys() == {"glass", "red"}
        assert np.mean(list(card.metrics["IoU"].values())) == pytest.approx(best, abs=1e-4)
        network, _ = load_segmenter(tmp_path / "out" / "model")
        tile = np.full((1, 64, 64, 3), 240, np.uint8)
        tile[0, 20:44, 10:50] = (190, 60, 70)
        with torch.inference_mode():
            red = network(torch.from_numpy(tile))[0, 1]  # 24 x 24 cells of the core, from pixel 8 on
        assert float(red[8:16, 4:18].min()) > 0.5 > float(red[:4].max())
        lines = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
        assert lines[0].endswith("mean_iou")
        assert [line.split(",")[0] for line in lines[1:]] == ["120", "240"]

    def test_blur_and_jpeg_of_the_recipe_wear_the_tiles(self, tmp_path: Path) -> None:
        places, losses = rows(tmp_path), {}
        for name, changes in (("plain", {}), ("worn", {"blur": 3.0, "jpeg": 1.0})):
            cfg = config(examples=4, batch=4, validate_every=4, augment=PLAIN.model_copy(update=changes))
            train_segmenter(places[:1], cfg, tmp_path / name, code_version="c")
            losses[name] = (tmp_path / name / "metrics.csv").read_text().splitlines()[1].split(",")[2]
        assert losses["plain"] != losses["worn"]

    def test_a_stopped_run_goes_on_to_the_same_bits(self, tmp_path: Path) -> None:
        cfg, places = (
            config(examples=60, validate_every=60, checkpoint_every=20, elastic_px=2.0),
            rows(tmp_path),
        )
        train_segmenter(places, cfg, tmp_path / "whole", code_version="c")
        stops = iter([False] * 8 + [True])
        with pytest.raises(KeyboardInterrupt):
            train_segmenter(
                places, cfg, tmp_path / "cut", code_version="c", listeners=Listeners(stop=lambda: next(stops))
            )
        train_segmenter(places, cfg, tmp_path / "cut", code_version="c", resume=True)
        files = [tmp_path / name / "model" / "model.safetensors" for name in ("whole", "cut")]
        assert files[0].read_bytes() == files[1].read_bytes()
        other = cfg.model_copy(update={"separation": 5.0})
        with pytest.raises(ModelError, match="separation"):
            train_segmenter(places, other, tmp_path / "cut", code_version="c", resume=True)

    def test_without_validation_the_last_network_is_kept(self, tmp_path: Path) -> None:
        cfg = config(examples=8, validate_every=8)
        best = train_segmenter(rows(tmp_path)[:1], cfg, tmp_path / "out", code_version="c")
        assert np.isnan(best)
        assert read_card(tmp_path / "out" / "model", SegmenterCard).metrics == {}

    def test_it_starts_from_another_of_the_same_shape(self, tmp_path: Path) -> None:
        cfg = config(examples=8, validate_every=8)
        places = rows(tmp_path)
        train_segmenter(places, cfg, tmp_path / "a", code_version="c")
        again = cfg.model_copy(update={"init": str(tmp_path / "a" / "model"), "learning_rate": 1e-9})
        train_segmenter(places, again, tmp_path / "b", code_version="c")
        first, second = (load_segmenter(tmp_path / n / "model")[0] for n in "ab")
        torch.testing.assert_close(first.body.score.weight, second.body.score.weight, atol=1e-5, rtol=0)  # type: ignore[union-attr]
        shape = cfg.segmenter.model_copy(update={"width": 16})
        with pytest.raises(ConfigError, match="has another shape than segmenter"):
            train_segmenter(
                places, again.model_copy(update={"segmenter": shape}), tmp_path / "c", code_version="c"
            )

    def test_the_command(self, tmp_path: Path, wsi: Any) -> None:
        places = rows(tmp_path)
        table = tmp_path / "areas.csv"
        lines = [f"{Path(r.source.path).name},{r.truth.name},{r.split}" for r in places if r.truth]
        table.write_text("\n".join(["path,truth,split", *lines]) + "\n")
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps(config(examples=12, validate_every=12).model_dump(mode="json")))
        words = ("train", "segmenter", recipe, "-o", tmp_path / "out")
        code, _, err = wsi(*words)
        assert (code, "names no slides; pass --slides" in err) == (2, True)
        code, out, _ = wsi(*words, "--slides", table, "--seed", "3", "--examples", "8")
        assert code == 0
        assert "the best network (mean IoU" in out
        card = read_card(tmp_path / "out" / "model", SegmenterCard)
        assert (card.training["seed"], card.training["examples"]) == (3, 8)
        assert (tmp_path / "out" / "metrics.png").stat().st_size > 1000
        code, _, err = wsi(*words, "--slides", table)
        assert (code, "pass --resume or --overwrite" in err) == (2, True)
        code, _, err = wsi(*words, "--slides", table, "--resume", "--seed", "3", "--examples", "8")
        assert code == 0, err
        assert wsi(*words, "--slides", table, "--overwrite", "--examples", "4")[0] == 0
        assert read_card(tmp_path / "out" / "model", SegmenterCard).training["examples"] == 4
