"""The int8 form of a model: made, measured, taken where it may be, refused in one sentence where it may not."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.card import CARD, INT8, Int8Facts, ModelCard, card_json, hash_int8, read_card
from models.engines import EngineConfig, find_models, load_engine
from models.engines import openvino as module
from tests.models.engines.test_domain import patches  # noqa: F401
from wsi.errors import ConfigError, ModelError
from wsi.slides.blocks import PatchBlock

Run = Callable[..., tuple[int, str, str]]
MODEL = "lymph-node-demo"
pytestmark = pytest.mark.slow


def block(side: int, count: int) -> PatchBlock:
    rng = np.random.default_rng(2)
    pixels = rng.integers(90, 240, (side, side + count, 3), dtype=np.uint8)
    return PatchBlock(pixels, np.array([(i, 0) for i in range(count)]), side)


def with_facts(folder: Path, **changes: Any) -> None:
    """The model's card with other facts of its int8 form."""
    card = read_card(folder, ModelCard)
    assert card.int8 is not None
    (folder / CARD).write_text(
        card_json(card.model_copy(update={"int8": card.int8.model_copy(update=changes)}))
    )


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model, fitted on noise: the form is asked for here, not the quality."""
    from models.engines.int8 import int8_graph, write_int8

    folder = tmp_path_factory.mktemp("models") / "int8"
    shutil.copytree(find_models([MODEL]).folders[0], folder)
    models = find_models([str(folder)])
    side = models.card.patch_px
    graph = int8_graph(models, list(block(side, 12).patches(0, 12)))
    write_int8(folder, graph)
    facts = {"auc": 0.99, "auc_fp32": 0.99, "largest_difference": 0.1, "patches": 9, "made_by": "a test"}
    int8 = Int8Facts(sha256=hash_int8(folder), made_from=models.card.graph_fingerprint, **facts)
    (folder / CARD).write_text(card_json(models.card.model_copy(update={"int8": int8})))
    return folder


@pytest.fixture
def copy(quantised: Path, tmp_path: Path) -> Path:
    shutil.copytree(quantised, tmp_path / "copy")
    return tmp_path / "copy"


def precision_of(folder: Path, **settings: Any) -> str:
    return load_engine(find_models([str(folder)]), EngineConfig(engine="openvino", **settings)).description


class TestScores:
    def test_they_are_near_those_of_fp32(self, quantised: Path) -> None:
        """And not the same, else another graph was run."""
        some = block(299, 19)
        scores = {}
        for precision in ("fp32", "int8"):
            cfg = EngineConfig(engine="openvino", precision=precision)  # type: ignore[arg-type]
            scores[precision] = next(iter(load_engine(find_models([str(quantised)]), cfg).score([some])))
        difference = np.abs(scores["int8"] - scores["fp32"]).max()
        assert 0 < difference < 0.2
        np.testing.assert_allclose(scores["int8"].sum(axis=1), 1, atol=1e-5)

    def test_its_graph_computes_in_whole_numbers(self, quantised: Path) -> None:
        """Every convolution is fed by numbers that were rounded to 256 levels; the softmax is not."""
        import openvino as ov

        operations = ov.Core().read_model(quantised / INT8[0]).get_ordered_ops()
        kinds = [operation.get_type_name() for operation in operations]
        rounded = kinds.count("FakeQuantize")
        assert rounded >= kinds.count("Convolution") / 2 > 10
        assert kinds.index("FakeQuantize") < kinds.index("Convolution")
        last = len(kinds) - 1 - kinds[::-1].index("FakeQuantize")
        assert last < kinds.index("Softmax") - 2

    def test_it_says_nothing_of_this_machine(self, quantised: Path) -> None:
        text = (quantised / INT8[0]).read_text()
        assert str(quantised.parent) not in text
        assert "nncf" not in text.lower()


class TestChoice:
    @pytest.mark.parametrize(
        ("vnni", "auc", "taken"), [(True, 0.9895, True), (True, 0.9889, False), (False, 0.99, False)]
    )
    def test_auto_takes_it_where_it_is_cheap_and_fast(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch, vnni: bool, auc: float, taken: bool
    ) -> None:
        with_facts(copy, auc=auc)
        monkeypatch.setattr(module, "has_vnni", lambda: vnni)
        models = find_models([str(copy)])
        assert module._int8_form(models, EngineConfig()) == (copy / INT8[0] if taken else None)
        assert module._int8_form(models, EngineConfig(precision="fp32")) is None
        if taken:
            assert ", int8, " in precision_of(copy)

    def test_another_class_is_looked_for_in_the_same_graph(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As `wsi score --class normal` does."""
        monkeypatch.setattr(module, "has_vnni", lambda: True)
        models = find_models([str(copy)]).with_positive("normal")
        assert module._int8_form(models, EngineConfig()) == copy / INT8[0]

    def test_eight_orientations_and_two_models_do_without(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "has_vnni", lambda: True)
        one, two = find_models([str(copy)]), find_models([str(copy), MODEL])
        assert module._int8_form(one, EngineConfig(orientations=8)) is None
        assert module._int8_form(two, EngineConfig()) is None
        with pytest.raises(ConfigError, match="int8 runs one model in one orientation"):
            precision_of(copy, orientations=8, precision="int8")

    def test_without_vnni_it_is_run_and_said(
        self, copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(module, "has_vnni", lambda: False)
        assert ", int8, " in precision_of(copy, precision="int8")
        assert "no VNNI: int8 may be slower" in caplog.text


class TestRefusals:
    def test_a_model_without(self) -> None:
        with pytest.raises(ConfigError, match="has no int8 form; make one: wsi models quantise"):
            precision_of(find_models(["renal-fields-demo"]).folders[0], precision="int8")

    def test_another_engine(self, copy: Path) -> None:
        with pytest.raises(ConfigError, match="int8 is run by OpenVINO on a CPU"):
            load_engine(find_models([str(copy)]), EngineConfig(engine="torch", precision="int8"))

    def test_a_changed_byte(self, copy: Path, wsi: Run) -> None:
        data = bytearray((copy / INT8[1]).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / INT8[1]).write_bytes(data)
        with pytest.raises(ModelError, match=r"int8.xml and int8.bin have sha256 .* copy the model again"):
            find_models([str(copy)])
        assert wsi("verify", copy)[0] == 1
        (copy / INT8[0]).unlink()
        with pytest.raises(ModelError, match="int8.xml cannot be read"):
            find_models([str(copy)])

    def test_another_calibration(self, copy: Path) -> None:
        """A person edits the card: the int8 graph holds what was there before."""
        value = json.loads((copy / CARD).read_text())
        value["calibration"] = [0.5, 0.1]
        (copy / CARD).write_text(json.dumps(value))
        with pytest.raises(ModelError, match="is of other weights or another calibration; make it again"):
            precision_of(copy, precision="int8")


class TestCommand:
    def test_it_measures_and_writes(self, patches: Path, tmp_path: Path, wsi: Run) -> None:  # noqa: F811
        words = ("--training", patches / "brown", "--patches", patches / "valid", "-o", tmp_path / "q")
        code, out, err = wsi("models", "quantise", "lymph-node-10x", *words)
        assert code == 0, err
        card = read_card(tmp_path / "q", ModelCard)
        assert card.int8 is not None
        assert card.int8.patches == len(list((patches / "valid").rglob("*.png")))
        assert f"Int8 form: AUC {card.int8.auc:.4f}" in out
        assert 0 < card.int8.largest_difference < 0.5
        assert card.int8.made_by.startswith("nncf ")
        code, shown, _ = wsi("models", "show", tmp_path / "q")
        assert "Int8 form: AUC" in shown
        code, _, err = wsi("models", "quantise", "lymph-node-10x", *words)
        assert (code, "holds a model already" in err) == (2, True)
        one = tmp_path / "one" / "tumor"
        one.mkdir(parents=True)
        shutil.copy(next((patches / "valid").rglob("*.png")), one)
        code, _, err = wsi(
            "models", "quantise", "lymph-node-10x", *words[:2], "--patches", one.parent, "-o", tmp_path / "r"
        )
        assert (code, "labelled patches of both classes" in err) == (2, True)

    def test_without_nncf(
        self,
        patches: Path,  # noqa: F811
        tmp_path: Path,
        wsi: Run,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setitem(sys.modules, "nncf", None)
        words = ("--training", patches / "brown", "--patches", patches / "valid", "-o", tmp_path / "q")
        code, _, err = wsi("models", "quantise", "lymph-node-10x", *words)
        assert (code, "pip install 'slidewright[int8]'" in err) == (2, True)
