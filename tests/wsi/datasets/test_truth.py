"""Truth from outlines and masks; what is known of a data set; folders of patches."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from shapely import Polygon, box

from models.training.recipe import TrainConfig
from pipelines.runs.config import load_config
from tests.slides import ROOT, real_data
from wsi.datasets.patch_folder import NEGATIVE_LABEL, POSITIVE_LABEL, read_patches
from wsi.datasets.rules import Dataset, apply_dataset, rows_of_folder
from wsi.datasets.truth import read_truth
from wsi.errors import AnnotationError, ConfigError
from wsi.marks.annotations import Annotation, read_annotations, tumour_regions, write_asap
from wsi.slides.grid import TileGrid, make_grid
from wsi.slides.manifest import SlideRow, read_manifest
from wsi.slides.readers.array import ArraySlide
from wsi.slides.slide import Slide, plan_read
from wsi.slides.source import SlideSource


def slide(width: int = 1300, height: int = 900) -> Slide:
    return ArraySlide([np.full((height, width, 3), 200, np.uint8)], path="s.png", mpp=0.25)


def grid(of: Slide, stride: int = 128) -> TileGrid:
    return make_grid(of.size, plan_read(of, 299, stride, None), None)


def marked(path: Path, of: Slide, **options: int) -> set[tuple[int, int]]:
    return {(int(r), int(c)) for r, c in np.argwhere(read_truth(path, of, grid(of), **options).tumour)}


class TestMasks:
    @pytest.mark.parametrize(("values", "tumour"), [((1,), 1), ((255,), 255), ((1, 2), 2), ((2,), 2)])
    def test_the_usual_values_are_detected_and_said(
        self, tmp_path: Path, values: tuple[int, ...], tumour: int
    ) -> None:
        mask = np.zeros((900, 1300), np.uint8)
        mask[0:128, 0:128] = values[0]  # normal tissue where there are two
        mask[300, 700] = tumour
        cv2.imwrite(str(tmp_path / "m.png"), mask)
        truth = read_truth(tmp_path / "m.png", slide(), grid(slide()))
        cells = {(int(r), int(c)) for r, c in np.argwhere(truth.tumour)}
        assert cells == ({(2, 5)} if len(values) == 2 else {(0, 0), (2, 5)})
        assert f"{tumour} is tumour" in truth.note

    @pytest.mark.parametrize("name", ["m.tif", "striped.tif"])
    def test_one_pixel_of_a_level_0_mask_is_not_lost(self, tmp_path: Path, name: str) -> None:
        mask = np.zeros((900, 1300), np.uint8)
        mask[899, 1299] = mask[127, 128] = 255
        options = {"tile": (256, 256)} if name == "m.tif" else {"rowsperstrip": 100}
        with tifffile.TiffWriter(tmp_path / name) as tif:
            tif.write(mask, compression="deflate", subifds=1, **options)
            tif.write(mask[::2, ::2] * 0, subfiletype=1, compression="deflate", **options)  # lost it
        assert marked(tmp_path / name, slide()) == {(7, 10), (0, 1)}

    def test_a_coarse_mask_marks_every_cell_its_pixels_touch(self, tmp_path: Path) -> None:
        """A pixel of 300 x 300: columns 600..900 are cells 4 to 7, rows 300..600 cells 2 to 4."""
        mask = np.zeros((3, 4), np.uint8)
        mask[1, 2] = 1
        cv2.imwrite(str(tmp_path / "m.png"), mask)
        assert marked(tmp_path / "m.png", slide(1200)) == {(r, c) for r in (2, 3, 4) for c in (4, 5, 6, 7)}

    def test_a_mask_and_its_outline_mark_the_same_cells(self, tmp_path: Path) -> None:
        outline = Polygon([(200, 130), (700, 210), (640, 700), (260, 520)])
        write_asap(tmp_path / "t.xml", [Annotation(outline, "Tumor")])
        mask = np.zeros((900, 1300), np.uint8)
        cv2.fillPoly(mask, [np.array(outline.exterior.coords, np.int32)], 255)
        cv2.imwrite(str(tmp_path / "m.png"), mask)
        one, other = marked(tmp_path / "t.xml", slide()), marked(tmp_path / "m.png", slide())
        assert len(one ^ other) <= 1
        assert len(one) > 12

    def test_the_alpha_of_a_tiff_is_no_tumour(self, tmp_path: Path) -> None:
        mask = np.zeros((900, 1300, 4), np.uint8)
        mask[..., 3] = 255
        mask[300, 700, :3] = 255
        tifffile.imwrite(tmp_path / "m.tif", mask, photometric="rgb", extrasamples=["unassalpha"])
        assert marked(tmp_path / "m.tif", slide()) == {(2, 5)}

    def test_other_values_must_be_said(self, tmp_path: Path) -> None:
        mask = np.zeros((90, 130), np.uint8)
        mask[10, 10], mask[50, 100] = 3, 7
        cv2.imwrite(str(tmp_path / "m.png"), mask)
        with pytest.raises(
            AnnotationError, match=r"holds the values \[3, 7\]; say which is tumour with truth_label"
        ):
            read_truth(tmp_path / "m.png", slide(), grid(slide()))
        assert marked(tmp_path / "m.png", slide(), label=7) == {(3, 7)}

    def test_a_mask_of_another_shape_is_refused(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "m.png"), np.ones((130, 90), np.uint8))
        with pytest.raises(AnnotationError, match="not the shape of its slide"):
            read_truth(tmp_path / "m.png", slide(), grid(slide()))

    def test_no_tumour_on_a_tumour_slide_is_refused(self, tmp_path: Path) -> None:
        cv2.imwrite(str(tmp_path / "m.png"), np.zeros((90, 130), np.uint8))
        with pytest.raises(
            AnnotationError, match=r"marks no tumour on s.png; if the slide has none, write 'normal'"
        ):
            read_truth(tmp_path / "m.png", slide(), grid(slide()))

    def test_what_is_no_picture_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "m.tif").write_bytes(b"II*\0nonsense")
        with pytest.raises(AnnotationError, match="cannot be read as a mask"):
            read_truth(tmp_path / "m.tif", slide(), grid(slide()))


class TestOutlines:
    def test_truth_of_another_slide_is_refused(self, tmp_path: Path) -> None:
        write_asap(tmp_path / "t.xml", [Annotation(box(1000, 500, 2000, 800), "Tumor")])
        with pytest.raises(
            AnnotationError, match="outside s.png of 1300 x 900 px: it is the truth of another"
        ):
            read_truth(tmp_path / "t.xml", slide(), grid(slide()))

    def test_an_empty_file_is_refused(self, tmp_path: Path) -> None:
        write_asap(tmp_path / "t.xml", [])
        with pytest.raises(AnnotationError, match="marks no tumour"):
            read_truth(tmp_path / "t.xml", slide(), grid(slide()))

    def test_repairs_are_counted(self, tmp_path: Path) -> None:
        bow = Polygon([(100, 100), (500, 500), (500, 100), (100, 500)])
        write_asap(
            tmp_path / "t.xml", [Annotation(bow, "Tumor"), Annotation(box(600, 600, 700, 700), "Tumor")]
        )
        truth = read_truth(tmp_path / "t.xml", slide(), grid(slide()))
        assert truth.note == "t.xml: 1 ring that crossed itself was repaired"

    def test_real_outlines_need_repair_and_keep_their_area(self) -> None:
        repaired = 0
        for path in sorted(real_data("camelyon16", "train_polygons").glob("*.json"))[:12]:
            found = tumour_regions(read_annotations(path), path)
            repaired += found.repaired
            assert found.area.is_valid
            assert found.area.area > 0
        assert repaired > 0


class TestDataset:
    def test_camelyon16_is_known(self) -> None:
        known = load_config(ROOT / "configs" / "camelyon16.yaml", TrainConfig).rules
        names = [f"Normal_{i:03d}" for i in range(1, 161)] + [f"Tumor_{i:03d}" for i in range(1, 112)]
        names += [f"test_{i:03d}" for i in range(1, 131)]
        found = apply_dataset([SlideRow(SlideSource(f"/x/{n}.tif")) for n in names], known)
        assert [text.split(" is left out")[0] for text in found.left_out] == [
            "Normal_086",
            "Normal_144",
            "test_049",
        ]
        split = {row.source.name: row.split for row in found.rows}
        counts = {s: sum(v == s for v in split.values()) for s in ("train", "validation", "test")}
        assert counts == {"train": 139 + 101, "validation": 10 + 19, "test": 129}  # NCRF's, and tumor_111
        assert split["Tumor_100"] == "train"
        assert split["Tumor_101"] == split["Normal_160"] == "validation"
        partial = [row.source.name for row in found.rows if row.partial]
        assert len(partial) == 21  # 20 to train on, and test_114
        assert {"Tumor_010", "Tumor_110"} <= set(partial)
        assert all((row.label == "normal") == row.source.name.startswith("Normal") for row in found.rows)

    def test_a_manifest_s_own_split_wins(self) -> None:
        row = SlideRow(SlideSource("/x/tumor_101.tif"), split="train")
        assert apply_dataset([row], Dataset(validation=("tumor_1*",))).rows[0].split == "train"

    def test_a_folder_is_paired_by_name(self, tmp_path: Path) -> None:
        names = ("images/tumor_001.tif", "images/normal_001.ome.tif", "annotations/tumor_001.xml")
        beside = ("images/._tumor_001.tif", "background_tissue/tumor_001_tissue.tif", "images/overview.jpg")
        for name in (*names, *beside):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "masks").mkdir()
        for name in ("tumor_001_mask.tif", "tumor_002_mask.tif"):
            (tmp_path / "masks" / name).touch()
        (tmp_path / "images/tumor_002.tif").touch()
        rows = rows_of_folder(tmp_path)
        truths = {row.source.name: row.truth and row.truth.name for row in rows}
        assert truths == {
            "normal_001": None,
            "tumor_001": "tumor_001.xml",  # outlines before masks
            "tumor_002": "tumor_002_mask.tif",
        }

    def test_a_folder_without_slides_and_one_name_twice_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="holds no slides"):
            rows_of_folder(tmp_path)
        (tmp_path / "a").mkdir()
        for name in ("a/x.tif", "x.svs"):
            (tmp_path / name).touch()
        with pytest.raises(ConfigError, match="have one name"):
            rows_of_folder(tmp_path)

    def test_every_bad_line_of_a_manifest_can_be_had_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").touch()
        (tmp_path / "s.csv").write_text("path,mpp\na.png,0.25\nb.png,\na.png,wide\n")
        problems: list[str] = []
        assert len(read_manifest(tmp_path / "s.csv", problems)) == 1
        assert ["line 3" in problems[0], "line 4" in problems[1]] == [True, True]


class TestPatchFolder:
    @pytest.fixture
    @staticmethod
    def folder(tmp_path: Path) -> Path:
        for k, name in enumerate(("normal", "tumor")):
            (tmp_path / name).mkdir()
            for i in range(3):
                image = np.full((32, 32, 3), 40 * i + 9 * k, np.uint8)
                cv2.imwrite(str(tmp_path / name / f"{i}.jpg"), image)
        return tmp_path

    def test_classes_are_folders(self, folder: Path) -> None:
        found = read_patches(folder)
        assert [f.label for f in found.files] == [NEGATIVE_LABEL] * 3 + [POSITIVE_LABEL] * 3
        assert found.pixels[1][0, 0].tolist() == pytest.approx([40, 40, 40], abs=2)
        assert found.part(0.0, 0.67) == [0, 1, 3, 4]

    def test_a_list_gives_the_order(self, folder: Path) -> None:
        lines = ["file,label,order", "tumor/0.jpg,tumor,2", "normal/1.jpg,normal,0", "normal/0.jpg,normal,1"]
        (folder / "patches.csv").write_text("\n".join(lines))
        assert [f.path.name for f in read_patches(folder).files] == ["1.jpg", "0.jpg", "0.jpg"]

    @pytest.mark.parametrize("cut", [0, 40, 300])
    def test_a_broken_picture_is_named_and_left_out(self, folder: Path, cut: int) -> None:
        path = folder / "normal" / "1.jpg"
        path.write_bytes(path.read_bytes()[:cut])
        found = read_patches(folder)
        assert len(found.files) == 5
        assert found.left_out == (f"{path} is not a whole picture; save it again",)

    def test_one_picture_twice_is_taken_once(self, folder: Path) -> None:
        (folder / "normal" / "9.jpg").write_bytes((folder / "normal" / "1.jpg").read_bytes())
        found = read_patches(folder)
        assert len(found.files) == 6
        assert "is the same picture as" in found.left_out[0]

    def test_a_short_row_is_refused(self, folder: Path) -> None:
        (folder / "patches.csv").write_text("file,label\nnormal/1.jpg\n")
        with pytest.raises(ConfigError, match="needs the columns file and label"):
            read_patches(folder)

    def test_two_labels_for_one_patch_are_refused(self, folder: Path) -> None:
        (folder / "tumor" / "x.jpg").write_bytes((folder / "normal" / "1.jpg").read_bytes())
        with pytest.raises(ConfigError, match=r"1.jpg and .*x.jpg are the same picture under two labels"):
            read_patches(folder)
        (folder / "tumor" / "x.jpg").unlink()
        (folder / "patches.csv").write_text("file,label\nnormal/1.jpg,normal\nnormal/1.jpg,tumor\n")
        with pytest.raises(ConfigError, match="lists normal/1.jpg under two labels"):
            read_patches(folder)

    def test_a_class_without_patches_an_unknown_label_and_two_sizes_are_refused(self, folder: Path) -> None:
        cv2.imwrite(str(folder / "normal" / "3.png"), np.zeros((33, 32, 3), np.uint8))
        with pytest.raises(ConfigError, match=r"3.png has 32 x 33 px, .* all patches must have one size"):
            read_patches(folder)
        (folder / "normal" / "3.png").unlink()
        (folder / "blurred").mkdir()
        cv2.imwrite(str(folder / "blurred" / "0.png"), np.zeros((32, 32, 3), np.uint8))
        with pytest.raises(ConfigError, match="label 'blurred' is unknown"):
            read_patches(folder)
        (folder / "blurred").rename(folder / "benign")
        for path in (folder / "tumor").iterdir():
            path.unlink()
        with pytest.raises(ConfigError, match="has no tumour patch"):
            read_patches(folder)
        with pytest.raises(ConfigError, match="holds no labelled patches"):
            read_patches(folder / "nothing")
