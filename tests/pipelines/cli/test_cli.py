"""The command line as its user meets it: what is said, and the exit code."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.card import ZOO
from pipelines.cli import score as score_command
from tests.slides import COMMAND, ROOT, RednessEngine, card, painted, real_data, write_pyramid

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def redness(monkeypatch: pytest.MonkeyPatch) -> None:
    """`wsi score` measures redness instead of running a network."""
    monkeypatch.setattr(score_command, "find_models", lambda names: names)
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())


def outputs(folder: Path) -> dict[str, bytes]:
    """All but ``run.json``, which says when and where."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.json")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.usefixtures("redness")
class TestScore:
    def test_a_folder_with_broken_slides_among_good_ones(
        self, wsi: Run, red_square: Path, tmp_path: Path
    ) -> None:
        slides = tmp_path / "slides with space"
        slides.mkdir()
        shutil.copy(red_square, slides / "Größe 1.tif")
        (slides / "text.svs").write_text("not a slide")
        code, out, err = wsi("score", slides, "--out", tmp_path / "out")
        assert code == 1
        assert "Größe 1: score 0.938, equivocal, 1 area with 1 peak" in out
        assert "text: failed: " in err
        assert "text.svs is no TIFF inside" in err
        run = json.loads((tmp_path / "out" / "run.json").read_text())
        assert run["state"] == "finished"
        assert [s["name"] for s in run["slides"]] == ["Größe 1"]
        assert run["failed"][0]["path"].endswith("text.svs")
        assert (tmp_path / "out" / "slide_scores.csv").read_text() == (
            "slide,score,confidence,cells,cells_not_read,note\nGröße 1,0.937500,equivocal,448,0,\n"
        )
        page = (tmp_path / "out" / "index.html").read_text()
        assert "Größe 1" in page
        assert "For research use only" in page

    def test_names_are_escaped_on_the_page(self, wsi: Run, red_square: Path, tmp_path: Path) -> None:
        path = tmp_path / "<img src=x onerror=alert(1)>.tif"
        shutil.copy(red_square, path)
        wsi("score", path, "--out", tmp_path / "out")
        assert "<img src=x" not in (tmp_path / "out" / "index.html").read_text()

    def test_two_runs_give_the_same_bytes(self, wsi: Run, red_square: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            assert wsi("score", red_square, "--out", tmp_path / name)[0] == 0
        assert outputs(tmp_path / "a") == outputs(tmp_path / "b")

    def test_unreadable_cells_are_said_and_the_exit_code_says_so(
        self, wsi: Run, broken_tile: Path, tmp_path: Path
    ) -> None:
        code, out, err = wsi("score", broken_tile, "--out", tmp_path / "out")
        assert code == 1
        assert "score 0.9" in out
        assert "cells could not be decoded" in err

    def test_no_tissue_is_said(self, wsi: Run, tmp_path: Path) -> None:
        path = write_pyramid(tmp_path / "glass.tif", np.full((1024, 1024, 3), 245, np.uint8))
        code, _, err = wsi("score", path, "--out", tmp_path / "out")
        assert code == 1
        assert (
            "no tissue found (no stain, or only in specks of some tens of um: the slide is glass, or too pale; immunostains need --tissue density)"
            in err
        )
        assert "glass,,not scored,0,0," in (tmp_path / "out" / "slide_scores.csv").read_text()
        assert "0 of 1 slide scored" in (tmp_path / "out" / "index.html").read_text()

    def test_a_folder_of_another_model_is_refused(
        self, wsi: Run, red_square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wsi("score", red_square, "--out", tmp_path / "out")
        before = outputs(tmp_path / "out")
        monkeypatch.setattr(
            score_command,
            "load_engine",
            lambda models, cfg: RednessEngine(card(sha256="1" * 64, name="other")),
        )
        code, _, err = wsi("score", red_square, "--out", tmp_path / "out")
        assert code == 2
        assert "holds results of another model" in err
        assert "--overwrite" in err
        assert outputs(tmp_path / "out") == before
        assert wsi("score", red_square, "--out", tmp_path / "out", "--overwrite")[0] == 0

    def test_a_second_command_keeps_the_first_one_s_slides(
        self, wsi: Run, red_square: Path, tmp_path: Path
    ) -> None:
        for name in ("a", "b"):
            shutil.copy(red_square, tmp_path / f"{name}.tif")
            assert wsi("score", tmp_path / f"{name}.tif", "--out", tmp_path / "out")[0] == 0
        lines = (tmp_path / "out" / "slide_scores.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in lines] == ["slide", "a", "b"]
        assert [s["name"] for s in json.loads((tmp_path / "out" / "run.json").read_text())["slides"]] == [
            "a",
            "b",
        ]

    def test_a_changed_slide_costs_itself_only(
        self, wsi: Run, red_square: Path, broken_tile: Path, tmp_path: Path
    ) -> None:
        for name in ("a", "b"):
            shutil.copy(red_square, tmp_path / f"{name}.tif")
        wsi("score", tmp_path / "a.tif", "--out", tmp_path / "out")
        shutil.copy(broken_tile, tmp_path / "a.tif")
        code, out, err = wsi("score", tmp_path / "a.tif", tmp_path / "b.tif", "--out", tmp_path / "out")
        assert code == 1
        assert "a: failed: " in err
        assert "another slide" in err
        rows = (tmp_path / "out" / "slide_scores.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows] == ["slide", "a", "b"]  # what was done is not lost
        assert rows[1].endswith(",a result of an earlier run: the last run of this slide failed")
        assert wsi("verify", tmp_path / "out")[0] == 0
        assert "b: score 0.938" in out

    def test_names_with_dollars(self, wsi: Run, red_square: Path, tmp_path: Path) -> None:
        shutil.copy(red_square, tmp_path / "case$1_$2 病理.tif")
        code, _, err = wsi("score", tmp_path / "case$1_$2 病理.tif", "--out", tmp_path / "out")
        assert (code, err) == (0, "")

    def test_one_mask_for_two_slides(self, wsi: Run, red_square: Path, tmp_path: Path) -> None:
        shutil.copy(red_square, tmp_path / "a.tif")
        (tmp_path / "m.png").touch()
        code, _, err = wsi(
            "score", tmp_path / "a.tif", red_square, "--mask", tmp_path / "m.png", "--out", tmp_path / "o"
        )
        assert code == 2
        assert "is one mask, for 2 slides" in err

    def test_two_slides_of_one_stem(self, wsi: Run, red_square: Path, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            shutil.copy(red_square, tmp_path / name / "s.tif")
        assert wsi("score", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out")[0] == 0
        assert (tmp_path / "out" / "a_s.tif" / "preview.png").exists()
        assert (tmp_path / "out" / "b_s.tif" / "preview.png").exists()

    def test_an_interruption_is_said(
        self, wsi: Run, red_square: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine(fail_after=0))
        code, _, err = wsi("score", red_square, "--out", tmp_path / "out")
        assert code == 130
        assert "run the same command again" in err
        assert json.loads((tmp_path / "out" / "run.json").read_text())["state"] == "interrupted"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("score: {strid: 128}", r"c.yaml: score.strid: extra inputs are not permitted"),
            ("score: {stride: 100}", r"c.yaml: score.stride: input should be 16, 32, 64, 128 or 256"),
            ("engine: {precision: half}", "engine.precision"),
            ("score: {min_tissue: '0.5'}", "score.min_tissue: input should be a valid number"),
            ("- a", "must hold keys and values"),
            ("a: [", "is not YAML"),
        ],
    )
    def test_mistakes_in_a_configuration_are_named(
        self, wsi: Run, red_square: Path, tmp_path: Path, text: str, message: str
    ) -> None:
        (tmp_path / "c.yaml").write_text(text)
        code, _, err = wsi("score", red_square, "--out", tmp_path / "out", "--config", tmp_path / "c.yaml")
        assert code == 2
        assert message in err

    def test_a_mask_with_an_entity_bomb(self, wsi: Run, red_square: Path, tmp_path: Path) -> None:
        (tmp_path / "m.xml").write_text(
            '<!DOCTYPE x [<!ENTITY a "aa">]><ASAP_Annotations>&a;</ASAP_Annotations>'
        )
        code, _, err = wsi("score", red_square, "--out", tmp_path / "out", "--mask", tmp_path / "m.xml")
        assert code == 1
        assert "m.xml is not safe, well-formed XML" in err

    def test_a_manifest_with_a_missing_file(self, wsi: Run, tmp_path: Path) -> None:
        (tmp_path / "s.csv").write_text("path\ngone.tif\n")
        code, _, err = wsi("score", tmp_path / "s.csv", "--out", tmp_path / "out")
        assert code == 2
        assert "gone.tif does not exist" in err


@pytest.mark.usefixtures("redness")
class TestExport:
    @pytest.fixture
    def scored(self, wsi: Run, red_square: Path, tmp_path: Path) -> Path:
        assert wsi("score", red_square, "--out", tmp_path / "out")[0] == 0
        return tmp_path / "out"

    def test_every_form(self, wsi: Run, scored: Path) -> None:
        for kind, name in [
            ("geojson", "lesions.geojson"),
            ("asap", "lesions.xml"),
            ("csv", "cells.csv"),
            ("ome-tiff", "heatmap.ome.tif"),
        ]:
            code, out, _ = wsi("export", kind, scored)
            assert code == 0
            assert out.strip() == str(scored / "red square" / name)
            assert (scored / "red square" / name).stat().st_size > 0

    @pytest.mark.parametrize(
        "key", ["classes", "positive", "lesion_settings", "fingerprint", "bounds", "model"]
    )
    def test_a_fact_that_is_gone_is_told(self, wsi: Run, scored: Path, key: str) -> None:
        path = scored / "red square" / "slide.json"
        facts = json.loads(path.read_text())
        del facts[key]
        path.write_text(json.dumps(facts))
        for kind in ("geojson", "asap", "csv", "ome-tiff"):
            code, _, err = wsi("export", kind, scored)
            assert (code, "slide.json is broken" in err) == (2, True), (kind, err)

    def test_tiles_and_gz(self, wsi: Run, scored: Path) -> None:
        import gzip

        slide = scored / "red square"
        lesions = (slide / "lesions.geojson").read_bytes()
        assert wsi("export", "geojson", scored, "--tiles", "--gz")[0] == 0
        assert (slide / "lesions.geojson").read_bytes() == lesions
        for name in ("lesions.geojson", "cells.geojson"):
            assert gzip.decompress((slide / f"{name}.gz").read_bytes()) == (slide / name).read_bytes()
        tiles = json.loads((slide / "cells.geojson").read_text())["features"]
        assert len(tiles) == json.loads((slide / "slide.json").read_text())["cells"]
        assert {f["properties"]["objectType"] for f in tiles} == {"tile"}
        red = [f for f in tiles if f["properties"]["measurements"]["probability"] >= 0.5]
        assert len(red) == 25  # 5 x 5 cells of the square
        for f in tiles:
            assert ("classification" in f["properties"]) == (f in red)
            assert "name" not in f["properties"]
        classes = {
            f["properties"]["classification"]["name"] for f in [*red, *json.loads(lesions)["features"]]
        }
        assert classes == {"Tumor"}  # one spelling in all files
        assert wsi("verify", scored)[0] == 0
        assert wsi("export", "geojson", scored)[0] == 0
        assert not (slide / "lesions.geojson.gz").exists()

    def test_the_origin_changes_the_file_and_its_record(self, wsi: Run, scored: Path) -> None:
        path = scored / "red square" / "slide.json"
        value = json.loads(path.read_text())
        path.write_text(json.dumps(value | {"bounds": [100, 40, 4000, 3000]}))
        for origin, corner in (("slide", [1280, 1024]), ("bounds", [1180, 984]), ("auto", [1180, 984])):
            assert wsi("export", "geojson", scored, "--origin", origin, "--tiles")[0] == 0
            tile = json.loads((scored / "red square" / "cells.geojson").read_text())["features"][0]
            moved = (1280 - corner[0], 1024 - corner[1])
            first = tuple(min(axis) for axis in zip(*tile["geometry"]["coordinates"][0], strict=True))
            assert (first[0] + moved[0]) % 128 == 0
            assert (first[1] + moved[1]) % 128 == 0
            assert (first[0] % 128 == 0) == (origin == "slide")
            area = json.loads((scored / "red square" / "lesions.geojson").read_text())["features"][0]
            assert [min(axis) for axis in zip(*area["geometry"]["coordinates"][0], strict=True)] == corner
            assert wsi("verify", scored)[0] == 0

    def test_nothing_to_export(self, wsi: Run, tmp_path: Path) -> None:
        code, _, err = wsi("export", "csv", tmp_path)
        assert code == 2
        assert "holds no scored slide; run wsi score first" in err


class TestInfoAndDoctor:
    def test_info(self, wsi: Run, coordinate_slide: Path) -> None:
        code, out, _ = wsi("info", coordinate_slide)
        assert code == 0
        assert "700 x 500 px" in out
        assert "0.25 um/px, from openslide" in out
        code, out, _ = wsi("info", coordinate_slide, "--json")
        assert json.loads(out)["levels"][1] == {"size": [350, 250], "downsample": 2.0}

    def test_info_of_a_missing_slide(self, wsi: Run, tmp_path: Path) -> None:
        code, _, err = wsi("info", tmp_path / "gone.svs")
        assert code == 2
        assert "gone.svs does not exist" in err

    def test_doctor(self, wsi: Run, coordinate_slide: Path, tmp_path: Path) -> None:
        square = write_pyramid(
            tmp_path / "s.tif", painted(1500, 1500, (200, 200, 1300, 1300), (200, 80, 90)), levels=3
        )
        code, out, _ = wsi("doctor", square)
        assert code == 0
        assert "OpenSlide" in out
        assert "patches/s" in out
        assert "cells with tissue" in out
        (tmp_path / "bad.svs").write_text("x")
        code, out, _ = wsi("doctor", tmp_path / "bad.svs")
        assert code == 1
        assert "is no TIFF inside" in out

    def test_no_words_is_help_and_a_wrong_word_is_usage(self, wsi: Run) -> None:
        assert "score" in wsi()[1]
        assert wsi("scroe")[0] == 2


class TestModels:
    def test_a_model_that_is_not_there(self, wsi: Run, coordinate_slide: Path, tmp_path: Path) -> None:
        code, _, err = wsi("score", coordinate_slide, "--model", "nowhere", "--out", tmp_path / "o")
        assert code == 2
        assert (
            "there is no model folder nowhere; models that ship: kidney-compartments-demo, lymph-node-10x, lymph"
            in err
        )

    def test_other_phantoms_are_not_replaced_in_silence(self, wsi: Run, tmp_path: Path) -> None:
        (tmp_path / "phantoms.json").write_text('{"settings": {"seed": 1}}')
        code, _, err = wsi("phantom", "lymph-node", "--out", tmp_path)
        assert code == 2
        assert "holds other phantoms" in err

    def test_version(self, wsi: Run) -> None:
        assert wsi("--version")[1].startswith("slidewright ")

    def test_out_is_a_file(self, wsi: Run, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        code, _, err = wsi(
            "phantom", "lymph-node", "--size", "4096x4096", "--count", 1, "--out", tmp_path / "file"
        )
        assert code == 2
        assert "a file has the name of the folder; choose another --out" in err

    def test_a_phantom_too_small(self, wsi: Run, tmp_path: Path) -> None:
        code, _, err = wsi("phantom", "lymph-node", "--size", "10x10", "--out", tmp_path)
        assert code == 2
        assert "--size must lie between" in err

    def test_a_trained_model_is_not_replaced(self, wsi: Run, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("name: x\nslides: s.csv\n")
        (tmp_path / "o" / "model").mkdir(parents=True)
        code, _, err = wsi("train", "classifier", tmp_path / "c.yaml", "--out", tmp_path / "o")
        assert code == 2
        assert "holds a run already; pass --resume or --overwrite" in err

    def test_a_class_the_model_does_not_have(self, wsi: Run, coordinate_slide: Path, tmp_path: Path) -> None:
        code, _, err = wsi("score", coordinate_slide, "--class", "fat", "--out", tmp_path / "o")
        assert code == 2
        assert "no class 'fat'; it has normal, tumor" in err

    def test_training_without_slides(self, wsi: Run, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text("name: x\n")
        code, _, err = wsi("train", "classifier", tmp_path / "c.yaml", "--out", tmp_path / "o")
        assert code == 2
        assert "names no slides; pass --slides" in err


@pytest.mark.slow
class TestForReal:
    """The model that ships, as a process of its own."""

    def command(self, slides: Path, out: Path) -> list[str]:
        return [
            COMMAND,
            "score",
            str(slides),
            "--out",
            str(out),
            "--native",
            "--mpp",
            "0.25",
        ]

    def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
        self, red_square: Path, tmp_path: Path
    ) -> None:
        # three strides of 64 px: more chunks, and more moments
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        command = [*self.command(red_square, whole), "--stride", "64"]
        start = time.monotonic()
        subprocess.run(command, check=True, env=environment, capture_output=True)
        took = time.monotonic() - start
        command = [*self.command(red_square, killed), "--stride", "64"]
        moments = random.Random(0)
        for _ in range(3):
            process = subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            time.sleep(moments.uniform(0.3, 1.0) * took)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True, env=environment, capture_output=True)
        assert outputs(killed) == outputs(whole)

    def test_real_slides_the_broken_ones_refused_by_name(self, wsi: Run, tmp_path: Path) -> None:
        code, out, err = wsi("score", real_data("slides"), "--out", tmp_path / "out", "--native")
        assert code == 1
        assert "cmu-1-small-region: score" in out
        for name, why in [
            ("boxes", "stores only"),
            ("tcga_j2k_no_mpp", "stores no micron size"),
            ("camelyon_overview_j2k", "28.969"),
            ("not_a_slide", "is no TIFF inside"),
            ("unopenable", "cannot be opened"),
            ("unreadable", "no part of it can be decoded"),
        ]:
            line = next(line for line in err.splitlines() if line.startswith(f"{name}: failed"))
            assert why in line

    def test_a_jpeg_2000_slide_with_downsample_2_0005(self, wsi: Run, tmp_path: Path) -> None:
        path = real_data("slides", "tcga_j2k_no_mpp.svs")
        code, out, _ = wsi("score", path, "--mpp", "0.25", "--out", tmp_path / "out")
        assert code == 0
        assert "tcga_j2k_no_mpp: score" in out


class TestLazyCommands:
    def test_the_version_loads_nothing_heavy(self) -> None:
        """What takes seconds to import is not imported to print a number."""
        script = (
            "import sys; sys.argv = ['wsi', '--version']\n"
            "from pipelines import cli\n"
            "try: cli.main()\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'openvino', 'numpy', 'scipy', 'matplotlib', 'cv2', 'zarr'} & set(sys.modules)\n"
            "print(sorted(heavy))\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert done.stdout.splitlines() == ["slidewright 0.1.0", "[]"], done.stderr

    def test_every_command_has_short_options_and_whole_sentences(self, wsi: Run) -> None:
        from pipelines.cli.lazy import SOURCES, load

        def commands(name: str, command: object) -> list[tuple[str, object]]:
            below = getattr(command, "commands", {})
            return [(name, command)] + [c for n, sub in below.items() for c in commands(f"{name} {n}", sub)]

        every = [c for name in SOURCES for c in commands(name, load(name))]
        assert len(every) > 25
        for name, command in every:
            assert command.help, name
            assert command.help.split("\n")[0].strip().endswith((".", "?")), (name, command.help)
            if not hasattr(command, "commands"):
                options = {o for p in command.params for o in getattr(p, "opts", [])}
                assert {"-q", "-v"} <= options, name
                assert ("--out" in options) == ("-o" in options), name
                assert ("--model" in options) == ("-m" in options), name
                arguments = [p for p in command.params if p.param_type_name == "argument"]
                assert "Examples:\n" in command.help or not arguments, name
                assert not {p.metavar for p in arguments} & {"PATH", "TEXT"}, name

    def test_help_shows_defaults_and_examples(self, wsi: Run) -> None:
        code, out, _ = wsi("score", "-h")
        text = " ".join(out.replace("│", " ").split())
        assert code == 0
        for words in (
            "default: (lymph-node-10x)",
            "default: (0.5)",
            "Examples:",
            "-m first -m second",
            "NUMBER",
        ):
            assert words in text
        assert "<list[str]>" not in text.replace("SLIDES <list[str]>", "")

    def test_quiet_and_verbose(self, wsi: Run, coordinate_slide: Path) -> None:
        loud = wsi("info", coordinate_slide)
        quiet = wsi("info", coordinate_slide, "-q")
        assert loud[1]
        assert quiet == (0, "", "")
        assert wsi("info", coordinate_slide)[1] == loud[1]  # the next command is not quiet
        assert loud[2] == ""
        code, out, err = wsi("info", coordinate_slide, "-v")
        assert (code, out) == (0, loud[1])
        assert "700 x 500 px, " in err
        assert "opened by OpenSlideReader" in err

    def test_completion_can_be_shown(self, wsi: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
        code, out, _ = wsi("--show-completion", "bash")
        assert code == 0
        assert "COMPREPLY" in out


@pytest.mark.usefixtures("redness")
class TestFolderWithATable:
    """A folder that holds slides.csv is that table, for every command, and that is said."""

    @pytest.fixture
    def folder(self, tmp_path: Path, red_square: Path) -> Path:
        folder = tmp_path / "slides"
        folder.mkdir()
        for name in ("a", "b"):
            shutil.copy(red_square, folder / f"{name}.tif")
        (folder / "slides.csv").write_text("path,mpp\nb.tif,0.26\n")
        return folder

    def test_info_score_and_doctor(self, wsi: Run, folder: Path, tmp_path: Path) -> None:
        said = f"{folder} is read by the slides.csv in it"
        _, out, err = wsi("info", folder)
        assert "0.26 um/px" in out
        assert "a.tif" not in out
        assert said in err
        code, out, err = wsi("score", folder, "--out", tmp_path / "out")
        assert code == 0
        assert said in err
        assert [p.parent.name for p in (tmp_path / "out").glob("*/slide.json")] == ["b"]
        assert json.loads((tmp_path / "out" / "b" / "slide.json").read_text())["mpp"] == 0.26

    def test_training_commands(self, wsi: Run, folder: Path, tmp_path: Path) -> None:
        (folder / "slides.csv").write_text("path,label,split\nb.tif,normal,train\n")
        _, out, err = wsi("doctor", "--manifest", folder)
        assert f"{folder} is read by the slides.csv in it" in err
        assert "b: train" in out
        assert "a: " not in out


class TestProgress:
    def test_time_left_is_that_of_all_slides(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three slides of sizes 1, 3 and 4; the first was done before. After 10 s a third of the second is done:
        1 of 8 parts took 10 s, 6 are left: 60 s."""
        from pipelines.cli import console

        clock = [100.0]
        monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
        shown: list[tuple[str, float, float | None]] = []
        bar = console.CohortProgress([1.0, 3.0, 4.0], lambda *what: shown.append(what))
        bar.begin(0, "a")
        bar(5, 5, "cells")
        bar.begin(1, "b")
        bar(2 * 2**20, 5 * 2**20, "bytes")
        assert shown[-1][0] == "slide 2 of 3, b: reading its file, 2 of 5 MiB"
        bar(0, 30, "cells")
        assert shown[-1] == ("slide 2 of 3, b: 0 of 30 cells", 1 / 8, None)
        clock[0] += 10
        bar(10, 30, "cells")
        assert shown[-1] == ("slide 2 of 3, b: 10 of 30 cells", 2 / 8, pytest.approx(60))

    def test_it_moves_inside_a_chunk(self, red_square: Path, tmp_path: Path) -> None:
        from pipelines.camelyon16.read.score import ScoreConfig, score_slide
        from wsi.slides.manifest import SlideRow
        from wsi.slides.source import SlideSource

        class Slow(RednessEngine):
            def score(self, blocks, *, scored=lambda patches: None):  # type: ignore[no-untyped-def]
                for scores in super().score(blocks):
                    for _ in range(4):
                        scored(len(scores) // 4)
                    yield scores

        told: list[tuple[int, int, str]] = []
        score_slide(
            SlideRow(SlideSource(str(red_square))),
            "s",
            Slow(),
            tmp_path / "out",
            ScoreConfig(),
            progress=lambda *what: told.append(what),
        )
        cells = [(done, total) for done, total, what in told if what == "cells"]
        assert len({done for done, _ in cells}) >= 5
        assert [done for done, _ in cells] == sorted(done for done, _ in cells)
        assert cells[-1] == (448, 448)


class TestVerifyModel:
    def test_a_name_of_nothing_is_said_to_be(self, wsi: Run) -> None:
        code, _, err = wsi("verify", "nosuchmodel")
        assert (code, "neither a folder nor a model that ships" in " ".join(err.split())) == (2, True)

    def test_a_model_s_weights_are_those_of_its_card(self, wsi: Run, tmp_path: Path) -> None:
        for name in ("lymph-node-demo", "renal-ptc-demo"):
            code, out, _ = wsi("verify", name)
            weights = (ZOO / name / "model.safetensors").read_bytes()
            assert (code, hashlib.sha256(weights).hexdigest() in out) == (0, True)
        shutil.copytree(ZOO / "lymph-node-demo", tmp_path / "copy")
        assert wsi("verify", tmp_path / "copy")[0] == 0
        with (tmp_path / "copy" / "model.safetensors").open("r+b") as file:
            file.seek(-5, 2)
            file.write(b"!")
        code, _, err = wsi("verify", tmp_path / "copy")
        assert (code, "model.safetensors has sha256" in err) == (1, True)
        (tmp_path / "copy" / "card.json").write_text("{")
        code, _, err = wsi("verify", tmp_path / "copy")
        assert (code, "card.json is not a valid card" in err) == (1, True)

    def test_wsinfer_s_form_notes_nothing(self, wsi: Run, tmp_path: Path) -> None:
        (tmp_path / "torchscript_model.pt").write_bytes(b"weights")
        code, _, err = wsi("verify", tmp_path)
        assert (code, hashlib.sha256(b"weights").hexdigest() in err) == (2, True)
