"""Every reader keeps every promise of `Slide`."""

from __future__ import annotations

import pickle
from abc import abstractmethod
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.slides import MPP, coordinates, real_data, write_pyramid
from wsi.errors import MissingMppError, SlideError, SpacingError
from wsi.slides.readers.array import ArraySlide
from wsi.slides.readers.openslide import OpenSlideReader
from wsi.slides.readers.tiffslide import TiffSlideReader
from wsi.slides.slide import Level, ReadPlan, Slide, Spacing, over_white, plan_read
from wsi.slides.source import SlideSource


class SlideContract:
    """Promises that hold for the coordinate slide (700 x 500, red x // 4, green y // 4) in any reader."""

    levels = 3

    @pytest.fixture
    @abstractmethod
    def source(self, tmp_path: Path) -> SlideSource: ...

    def test_size_and_levels(self, source: SlideSource) -> None:
        with source.open() as slide:
            assert slide.size == (700, 500)
            assert [level.size for level in slide.levels] == [(700, 500), (350, 250), (175, 125)][
                : self.levels
            ]

    def test_regions_are_rgb_of_exactly_the_size_asked_for(self, source: SlideSource) -> None:
        with source.open() as slide:
            for level in range(self.levels):
                for location, size in [((0, 0), (7, 5)), ((-10, 650), (33, 21)), ((5000, 5000), (3, 4))]:
                    region = slide.read_region(location, level, size)
                    assert region.shape == (size[1], size[0], 3)
                    assert region.dtype == np.uint8

    def test_location_is_in_level_0_pixels_at_every_level(self, source: SlideSource) -> None:
        with source.open() as slide:
            for level in range(self.levels):
                x, y = 400, 240
                red, green, blue = slide.read_region((x, y), level, (1, 1))[0, 0]
                assert (red, green, blue) == (x // 4, y // 4, 128)

    def test_x_goes_right_and_y_goes_down(self, source: SlideSource) -> None:
        with source.open() as slide:
            region = slide.read_region((100, 200), 0, (81, 41))
            assert tuple(region[0, 80, :2]) == (180 // 4, 200 // 4)
            assert tuple(region[40, 0, :2]) == (100 // 4, 240 // 4)

    def test_white_off_the_slide_on_every_side(self, source: SlideSource) -> None:
        with source.open() as slide:
            for level in range(self.levels):
                d = 2**level
                region = slide.read_region((-8, -8), level, (16 // d + 700 // d, 16 // d + 500 // d))
                edge = 8 // d
                inside = region[edge : edge + 500 // d, edge : edge + 700 // d]
                assert (inside[..., 2] == 128).all()
                outside = region.copy()
                outside[edge : edge + 500 // d, edge : edge + 700 // d] = 255
                assert (outside == 255).all()

    def test_wholly_off_the_slide_is_white(self, source: SlideSource) -> None:
        with source.open() as slide:
            assert (slide.read_region((-50, -50), 0, (20, 20)) == 255).all()
            assert (slide.read_region((700, 0), 0, (20, 20)) == 255).all()

    def test_the_source_travels_and_closing_twice_is_fine(self, source: SlideSource) -> None:
        again = pickle.loads(pickle.dumps(source))
        assert again == source
        slide = again.open()
        slide.close()
        slide.close()

    def test_wrong_arguments_are_refused(self, source: SlideSource) -> None:
        with source.open() as slide:
            with pytest.raises(ValueError, match="levels 0 to"):
                slide.read_region((0, 0), self.levels, (1, 1))
            with pytest.raises(ValueError, match="size must be positive"):
                slide.read_region((0, 0), 0, (0, 1))

    def test_given_mpp_wins(self, source: SlideSource) -> None:
        with SlideSource(source.path, mpp=0.5).open() as slide:
            assert slide.mpp == 0.5
            assert slide.spacing is not None
            assert slide.spacing.origin == "--mpp or manifest"


class TestOpenSlide(SlideContract):
    @pytest.fixture
    def source(self, coordinate_slide: Path) -> SlideSource:
        return SlideSource(str(coordinate_slide))

    def test_reader_and_spacing(self, source: SlideSource) -> None:
        with source.open() as slide:
            assert isinstance(slide, OpenSlideReader)
            assert slide.mpp == pytest.approx(MPP)


class TestTiffSlideUrl(SlideContract):
    @pytest.fixture
    def source(self, coordinate_slide: Path) -> SlideSource:
        with fsspec.open("memory://bucket/coordinates.tif", "wb") as file:
            file.write(coordinate_slide.read_bytes())
        return SlideSource("memory://bucket/coordinates.tif", stream=True)

    def test_reader_and_spacing(self, source: SlideSource) -> None:
        with source.open() as slide:
            assert isinstance(slide, TiffSlideReader)
            assert slide.mpp == pytest.approx(MPP)
        assert source.name == "coordinates"


class TestStagedUrl(SlideContract):
    """A copy of the whole file, read as a file on this machine is."""

    @pytest.fixture
    def source(self, coordinate_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlideSource:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with fsspec.open("memory://bucket/staged.tif", "wb") as file:
            file.write(coordinate_slide.read_bytes())
        return SlideSource("memory://bucket/staged.tif")

    def test_reader_and_spacing(self, source: SlideSource) -> None:
        with source.open() as slide:
            assert isinstance(slide, OpenSlideReader)
            assert slide.mpp == pytest.approx(MPP)
            assert slide.path == "memory://bucket/staged.tif"


class TestOmeTiff(SlideContract):
    @pytest.fixture
    def source(self, tmp_path: Path) -> SlideSource:
        path, image = tmp_path / "Größe 1.ome.tif", coordinates()
        with tifffile.TiffWriter(path, ome=True) as tif:
            options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
            sizes = {
                "PhysicalSizeX": MPP,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeY": MPP,
                "PhysicalSizeYUnit": "µm",
            }
            tif.write(image, subifds=2, metadata={"axes": "YXS", **sizes}, **options)
            tif.write(image[::2, ::2], subfiletype=1, **options)
            tif.write(image[::4, ::4], subfiletype=1, **options)
        return SlideSource(str(path))

    def test_reader_and_spacing(self, source: SlideSource) -> None:
        with source.open() as slide:
            assert isinstance(slide, TiffSlideReader)
            assert slide.mpp == pytest.approx(MPP)
        assert source.name == "Größe 1"


class TestPlainImage(SlideContract):
    levels = 1

    @pytest.fixture
    def source(self, tmp_path: Path) -> SlideSource:
        Image.fromarray(coordinates()).save(tmp_path / "plain.png")
        return SlideSource(str(tmp_path / "plain.png"))

    def test_no_spacing_is_an_error_that_names_the_flag(self, source: SlideSource) -> None:
        with (
            source.open() as slide,
            pytest.raises(MissingMppError, match=r"plain.png stores no micron size.*--mpp"),
        ):
            _ = slide.mpp


class TestArray(SlideContract):
    @pytest.fixture
    def source(self, coordinate_slide: Path) -> SlideSource:
        """Stands for an array: the same pixels through the base class."""

        class InMemory(SlideSource):
            def open(self) -> Slide:
                image = coordinates()
                return ArraySlide([image, image[::2, ::2], image[::4, ::4]], mpp=self.mpp)

        globals()["InMemory"] = InMemory
        InMemory.__qualname__ = "InMemory"
        return InMemory(str(coordinate_slide))

    def test_given_mpp_wins(self, source: SlideSource) -> None:
        assert ArraySlide([coordinates()], mpp=0.5).mpp == 0.5


def test_transparent_pixels_lie_over_white() -> None:
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [100, 0, 255, 128]]], np.uint8)
    # 100 * 128/255 + 255 * 127/255 = 177.2; 0 + 127 = 127; 255
    assert over_white(pixels).tolist() == [[[255, 255, 255], [10, 20, 30], [177, 127, 255]]]


def test_whatever_a_reader_gives_off_the_slide_is_white() -> None:
    class Black(ArraySlide):
        def _read(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
            return np.zeros((size[1], size[0], 3), np.uint8)

    slide = Black([coordinates(40, 30), coordinates(20, 15)], mpp=0.5)
    for level, (left, top, right, bottom) in enumerate([(10, 6, 50, 36), (5, 3, 25, 18)]):
        region = slide.read_region((-10, -6), level, (60, 50))
        assert (region[top:bottom, left:right] == 0).all()
        region[top:bottom, left:right] = 255
        assert (region == 255).all()


def test_bands_are_the_region(coordinate_slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SlideSource(str(coordinate_slide)).open() as slide:
        whole = [slide.read_region((-30, 41), level, (300, 433)) for level in range(3)]
        monkeypatch.setattr("wsi.slides.slide.BAND_PX", 64)
        for level in range(3):
            assert len(slide._bands(level, 433)) == 7
            np.testing.assert_array_equal(slide.read_region((-30, 41), level, (300, 433)), whole[level])


class TestSpacing:
    def slide(self, *stored: Spacing, **options: object) -> Slide:
        class Fixed(ArraySlide):
            def __init__(self) -> None:
                Slide.__init__(self, "s.tif", [Level((10, 10), 1.0)], stored, **options)  # type: ignore[arg-type]

        return Fixed()

    def test_first_sane_value_is_taken(self) -> None:
        slide = self.slide(Spacing(352.8, 352.8, "openslide"), Spacing(0.5, 0.5, "OME"))
        assert (slide.mpp, slide.spacing and slide.spacing.origin) == (0.5, "OME")

    def test_absurd_value_is_named(self) -> None:
        with pytest.raises(MissingMppError, match=r"352.8 um/px, outside 0.05 to 20"):
            _ = self.slide(Spacing(352.8, 352.8, "openslide")).mpp

    def test_x_and_y_may_differ_by_five_percent(self) -> None:
        assert self.slide(Spacing(0.25, 0.26, "openslide")).mpp == pytest.approx(0.255)

    def test_unequal_pixels_need_a_flag(self) -> None:
        unequal = Spacing(0.25, 0.30, "openslide")
        with pytest.raises(MissingMppError, match="--allow-anisotropic"):
            _ = self.slide(unequal).mpp
        assert self.slide(unequal, allow_anisotropic=True).mpp == pytest.approx(0.275)

    def test_tiff_of_72_dpi_has_no_spacing(self, tmp_path: Path) -> None:
        write_pyramid(
            tmp_path / "dpi.tif", coordinates(), mpp=None, resolution=(72, 72), resolutionunit="INCH"
        )
        with (
            SlideSource(str(tmp_path / "dpi.tif")).open() as slide,
            pytest.raises(MissingMppError, match="352.7"),
        ):
            _ = slide.mpp


class TestPlan:
    def slide(self, mpp: float, downsamples: tuple[float, ...] = (1.0, 2.0034, 4.0)) -> Slide:
        class Fixed(ArraySlide):
            def __init__(self) -> None:
                levels = [Level((round(4096 / d), round(4096 / d)), d) for d in downsamples]
                Slide.__init__(self, "s.tif", levels, [Spacing(mpp, mpp, "openslide")])

        return Fixed()

    @pytest.mark.parametrize("mpp", [0.226, 0.243, 0.25])
    def test_within_tolerance_level_0_is_read_as_it_is(self, mpp: float) -> None:
        plan = plan_read(self.slide(mpp), 299, 128, 0.243)
        assert plan == ReadPlan(level=0, stride_l0=128, stride_px=128, size_px=299)
        assert (plan.scale, plan.halo_px, plan.size_l0) == (1.0, 85, 299)

    def test_finer_slides_are_read_from_the_next_finer_level(self) -> None:
        plan = plan_read(self.slide(0.25), 256, 256, 0.5)
        assert (plan.level, plan.stride_l0, plan.size_l0) == (1, 512, 512)  # 2.0034 counts as 2

    def test_between_levels_the_finer_one_is_read(self) -> None:
        plan = plan_read(self.slide(0.25), 128, 128, 0.75)
        assert (plan.level, plan.stride_l0) == (1, 384)

    def test_coarser_slides_are_refused_with_a_way_out(self) -> None:
        with pytest.raises(SpacingError, match=r"0.499 um/px, the model needs 0.267 or finer.*--native"):
            plan_read(self.slide(0.499), 299, 128, 0.243)

    def test_native_needs_no_spacing(self) -> None:
        assert plan_read(ArraySlide([coordinates()]), 299, 128, None).scale == 1

    def test_bad_numbers_are_refused(self) -> None:
        with pytest.raises(ValueError, match="stride_px <= size_px"):
            plan_read(self.slide(0.25), 100, 128, None)


class TestOpening:
    def test_text_named_svs(self, tmp_path: Path) -> None:
        (tmp_path / "notes.svs").write_text("not a slide")
        with pytest.raises(SlideError, match=r"notes.svs is no TIFF inside"):
            SlideSource(str(tmp_path / "notes.svs")).open()

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(SlideError, match=r"gone.svs does not exist"):
            SlideSource(str(tmp_path / "gone.svs")).open()

    def test_broken_image(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").write_bytes(b"no picture")
        with pytest.raises(SlideError, match=r"x.png cannot be read as an image"):
            SlideSource(str(tmp_path / "x.png")).open()

    def test_tiff_that_openslide_does_not_know_goes_to_tiffslide(self, tmp_path: Path) -> None:
        tifffile.imwrite(tmp_path / "strips.tif", coordinates(), photometric="rgb")
        with SlideSource(str(tmp_path / "strips.tif")).open() as slide:
            assert isinstance(slide, TiffSlideReader)
            assert tuple(slide.read_region((400, 240), 0, (1, 1))[0, 0]) == (100, 60, 128)

    def test_identity_follows_the_bytes(self, coordinate_slide: Path, tmp_path: Path) -> None:
        copy = tmp_path / "other name.tif"
        copy.write_bytes(coordinate_slide.read_bytes())
        same = SlideSource(str(copy)).identity()
        assert same == SlideSource(str(coordinate_slide)).identity()
        copy.write_bytes(coordinate_slide.read_bytes() + b"x")
        assert same != SlideSource(str(copy)).identity()


class TestRealSlides:
    @pytest.mark.parametrize(
        ("name", "size", "mpp"),
        [
            ("cmu-1-small-region.svs", (2220, 2967), 0.499),
            ("tcga_j2k_no_mpp.svs", (4443, 3567), None),
            ("boxes.tiff", (300, 250), None),
            ("camelyon_overview_j2k.dcm", (1696, 812), None),
        ],
    )
    def test_size_and_spacing(self, name: str, size: tuple[int, int], mpp: float | None) -> None:
        with SlideSource(str(real_data("slides", name))).open() as slide:
            assert slide.size == size
            if mpp is None:
                with pytest.raises(MissingMppError, match="--mpp"):
                    _ = slide.mpp
            else:
                assert slide.mpp == mpp

    @pytest.mark.parametrize("name", ["unopenable.tiff", "not_a_slide.svs"])
    def test_refused_by_name(self, name: str) -> None:
        with pytest.raises(SlideError, match=name):
            SlideSource(str(real_data("slides", name))).open()

    def test_dicom_without_a_flavour(self) -> None:
        with pytest.raises(
            SlideError, match=r"no_image_flavor\.dcm.*its ImageType tells no flavour such as VOLUME"
        ):
            SlideSource(str(real_data("slides", "dicom_no_image_flavor.dcm"))).open()

    def test_tiffslide_agrees_with_openslide(self) -> None:
        path = str(real_data("slides", "cmu-1-small-region.svs"))
        with OpenSlideReader(path) as one, TiffSlideReader(path) as other:
            for location in [(0, 0), (900, 1400), (2100, 2900)]:
                a, b = (s.read_region(location, 0, (200, 150)).astype(int) for s in (one, other))
                assert np.abs(a - b).max() <= 3  # two JPEG decoders


def test_a_picture_that_is_cut_short_is_refused_whatever_others_have_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WeasyPrint lets Pillow read half pictures, in the whole process."""
    from PIL import ImageFile

    Image.fromarray(coordinates(300, 200)).save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(SlideError, match="p.png cannot be read as an image"):
        SlideSource(str(tmp_path / "p.png")).open()
    assert ImageFile.LOAD_TRUNCATED_IMAGES
