"""What a person types in a notebook: docs/library.md runs as it stands, and nothing heavy is imported before it is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import pipelines
import wsi
from tests.slides import COMMAND, ROOT, painted, write_pyramid
from wsi.placement import Placement


def test_the_page_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("Agg")
    image = painted(1600, 1200, (300, 200, 1300, 900), (180, 90, 150))
    noise = np.random.default_rng(0).integers(-30, 30, image.shape)
    image[200:900, 300:1300] = np.clip(image.astype(int) + noise, 0, 255)[200:900, 300:1300]
    write_pyramid(tmp_path / "slide.svs", image, mpp=0.5)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)
    known: dict[str, object] = {}
    exec(code, known)
    heatmap = known["heatmap"]
    assert isinstance(heatmap, wsi.Heatmap)
    assert heatmap.scored > 30
    assert (0, 0) not in np.argwhere(np.isfinite(heatmap.scores)).tolist()
    pixels = known["pixels"]
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (256, 256, 3)
    monkeypatch.chdir(ROOT)


def test_scores_are_those_of_the_command(tmp_path: Path) -> None:
    """`pipelines.score` and `score_slide` give the same heatmap."""
    from models.engines import EngineConfig, find_models, load_engine
    from pipelines.camelyon16.read.score import ScoreConfig, score_slide
    from wsi.results.store import HeatmapStore
    from wsi.slides.manifest import SlideRow
    from wsi.slides.source import SlideSource

    image = painted(1300, 900, (200, 100, 1100, 700), (170, 90, 160))
    path = write_pyramid(tmp_path / "s.tif", image, mpp=0.5)
    with wsi.open_slide(path) as slide:
        heatmap = pipelines.score(slide)
    engine = load_engine(find_models(["lymph-node-10x"]), EngineConfig())
    score_slide(SlideRow(SlideSource(str(path))), "s", engine, tmp_path / "out", ScoreConfig())
    stored = HeatmapStore.open(tmp_path / "out" / "heatmap.zarr").read(1)
    np.testing.assert_array_equal(heatmap.scores, stored.scores)
    assert heatmap.placement == stored.placement
    lesions = pipelines.find_lesions(heatmap)
    rows = (tmp_path / "out" / "lesions.csv").read_text().splitlines()
    assert [f"{v.score:.6f},{v.x:.0f},{v.y:.0f}" for v in lesions] == rows


def test_what_a_reader_must_know_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As the page and the console of `wsi score` do: a drawing is no tissue that the model knows; glass holds none."""
    image = painted(2600, 2200, (100, 100, 2500, 2100), (170, 90, 160))
    with wsi.open_slide(write_pyramid(tmp_path / "s.tif", image, mpp=0.5)) as slide:
        pipelines.score(slide)
    assert "s.tif: 100 % of its tissue looks unlike what lymph-node-10x was trained on" in caplog.text
    caplog.clear()
    glass = np.full((900, 900, 3), 255, np.uint8)
    with wsi.open_slide(write_pyramid(tmp_path / "g.tif", glass, mpp=0.5)) as slide:
        assert pipelines.score(slide).scored == 0
    assert "g.tif: no tissue found" in caplog.text


def test_a_plot_lies_in_level_0_pixels() -> None:
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    scores = np.full((3, 5), np.nan, np.float32)
    scores[2, 1] = 0.7
    axes = Figure().subplots()
    assert wsi.Heatmap(scores, Placement(128, 130)).plot(axes) is axes
    (shown,) = axes.images
    assert list(shown.get_extent()) == [0, 5 * 128, 3 * 130, 0]
    assert shown.get_clim() == (0, 1)
    assert float(shown.get_array()[2, 1]) == pytest.approx(0.7)


def test_every_name_is_there_and_no_other() -> None:
    for module in (wsi, pipelines):
        assert all(hasattr(module, name) for name in module.__all__)
        with pytest.raises(AttributeError, match="has no attribute 'nowhere'; it has "):
            _ = module.nowhere


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    script = (
        "import sys, wsi, pipelines; "
        "print([m for m in ('torch', 'openvino', 'zarr', 'cv2', 'openslide', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout.strip() == "[]"


def test_somebody_else_s_packages_of_the_same_names_do_no_harm(tmp_path: Path) -> None:
    """The installed command is run in a folder with a `models` and a `pipelines` of another project."""
    for name in ("models", "pipelines", "wsi"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    write_pyramid(tmp_path / "s.tif", painted(300, 200, (50, 40, 200, 150), (180, 90, 150)))
    for words in (["--version"], ["info", "s.tif"], ["models", "list"]):
        ended = subprocess.run([COMMAND, *words], capture_output=True, text=True, cwd=tmp_path)
        assert (ended.returncode, "not this one" in ended.stderr) == (0, False), ended.stderr


@pytest.mark.slow
def test_scoring_by_a_graph_that_was_converted_loads_no_torch(red_square: Path, tmp_path: Path) -> None:
    """It takes seconds and 600 MB. The shipped model has a domain, which is looked at as well."""
    script = """
import sys
from pipelines import cli
sys.argv = ["wsi", "score", *sys.argv[1:]]
try:
    cli.main()
finally:
    print("torch" in sys.modules, "torchvision" in sys.modules)
"""
    words = [red_square, "-m", "lymph-node-10x", "-o", tmp_path / "out"]
    said = []
    for extra in ([], ["--overwrite"]):
        command = [sys.executable, "-c", script, *map(str, words), *extra]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        said.append(ended.stdout.splitlines()[-1])
        shutil.rmtree(tmp_path / "out")
    assert said[1] == "False False", said
