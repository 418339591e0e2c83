from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from models.training.recipe import TrainConfig
from pipelines.cli.score import RunConfig
from pipelines.runs.config import load_config
from pipelines.runs.made_by import code_hash, fingerprint
from tests.slides import ROOT
from wsi.errors import ConfigError

CONFIGS = ROOT / "configs"


@pytest.mark.parametrize("name", ["camelyon16.yaml", "lymph_node_demo.yaml"])
def test_recipes_are_valid_and_say_their_reasons(name: str) -> None:
    cfg = load_config(CONFIGS / name, TrainConfig)
    assert cfg.name
    assert TrainConfig.model_validate_json(cfg.model_dump_json()) == cfg  # to text and back


def test_the_published_recipe_is_the_default() -> None:
    """Liu et al. 2017 (arXiv 1703.02442)."""
    cfg = load_config(CONFIGS / "camelyon16.yaml", TrainConfig)
    free = {"name", "training_data", "augment", "dataset", "limits"}
    changed = cfg.model_dump(exclude=free)
    default = TrainConfig(name="x").model_dump(exclude=free)
    assert changed == default
    assert cfg.augment.brightness == pytest.approx(64 / 255)


def test_the_scoring_file_shows_the_defaults() -> None:
    assert load_config(CONFIGS / "score.yaml", RunConfig) == RunConfig()
    text = yaml.safe_load((CONFIGS / "score.yaml").read_text())
    assert set(text["score"]) == set(RunConfig().score.model_dump())  # and all of them


def test_a_mistyped_key_is_named_with_those_known(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: x\nexmaples: 10\n")
    with pytest.raises(
        ConfigError, match=r"c.yaml: exmaples: .*\(got 10\); known keys are name, seed, batch, examples"
    ):
        load_config(tmp_path / "c.yaml", TrainConfig)


def test_types_are_exact(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: x\nexamples: 10.5\n")
    with pytest.raises(ConfigError, match="examples"):
        load_config(tmp_path / "c.yaml", TrainConfig)


def test_options_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: x\nexamples: 10\nseed: 3\n")
    cfg = load_config(tmp_path / "c.yaml", TrainConfig, {"examples": 20, "seed": None})
    assert (cfg.examples, cfg.seed) == (20, 3)


def test_fingerprints_depend_on_values_not_on_order() -> None:
    assert fingerprint(a=1, b={"x": 2}) == fingerprint(b={"x": 2}, a=1)
    assert fingerprint(a=1) != fingerprint(a=2)
    assert len(code_hash()) == 16


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: &a [1]\nb: *a",
        "a: &a [x,x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]",
        "score: " + "[" * 3000 + "]" * 3000,
        "!!python/object/apply:os.system ['true']",
        "when: 2001-99-99",
        "score: {min_tissue: " + "9" * 5000 + "}",
    ],
)
def test_hostile_yaml_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(tmp_path / "c.yaml", RunConfig)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("engine: {orientation: 8}", "known keys are engine, precision, orientations, batch"),
        ("score: {lesions: {radius: 3}}", "known keys are threshold, radius_px, confidence"),
        ("scores: {}", "known keys are score, engine"),
    ],
)
def test_a_mistyped_key_lists_the_keys_of_its_own_level(tmp_path: Path, text: str, known: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "c.yaml", RunConfig)
    assert str(caught.value).endswith(known)
