"""What files tell, planted; and that no output has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from pipelines.cli import score as score_command
from tests.slides import RednessEngine, coordinates, write_pyramid
from wsi.errors import SlideError
from wsi.slides.privacy import Trace, traces
from wsi.slides.source import SlideSource

Run = Callable[..., tuple[int, str, str]]
SECRETS = ("19/04/51", "ACC-77-123", "Erika Mustermann", "SS7042")


@pytest.fixture
def aperio(tmp_path: Path) -> Path:
    """An SVS as Aperio's scanners write it, with a date, an accession number, a user, a label and a macro picture."""
    image = np.full((1536, 2048, 3), 235, np.uint8)
    image[300:1200, 200:1800] = (220, 150, 190)
    head = (
        "Aperio Image Library v12.0.15\r\n2048x1536 [0,0 2048x1536] (256x256) JPEG/RGB Q=70|AppMag = 40|MPP = 0.25"
        f"|Date = {SECRETS[0]}|Barcode = {SECRETS[1]}|User = {SECRETS[2]}|ScanScope ID = {SECRETS[3]}|Exposure Time = 45"
    )
    path = tmp_path / "slide.svs"
    with tifffile.TiffWriter(path) as tif:
        options = {"photometric": "rgb", "compression": "jpeg", "metadata": None}
        tif.write(image, tile=(256, 256), description=head, **options)
        tif.write(
            image[::4, ::4],
            rowsperstrip=384,
            description="Aperio Image Library v12.0.15\r\nthumbnail",
            **options,
        )
        tif.write(
            image[::4, ::4],
            tile=(256, 256),
            description="Aperio Image Library v12.0.15\r\nlevel 1",
            **options,
        )
        label = np.full((100, 100, 3), 7, np.uint8)
        strips = {"photometric": "rgb", "rowsperstrip": 100, "metadata": None}
        tif.write(
            label, description="Aperio Image Library v12.0.15\r\nlabel 100x100", subfiletype=1, **strips
        )
        tif.write(
            label, description="Aperio Image Library v12.0.15\r\nmacro 100x100", subfiletype=9, **strips
        )
    return path


def test_every_planted_secret_is_found_and_nothing_technical(aperio: Path) -> None:
    told = traces(SlideSource(str(aperio)))
    values = {trace.value for trace in told}
    assert set(SECRETS) <= values
    assert Trace("picture 'label'", "may show a label") in told
    assert Trace("picture 'macro'", "may show a label") in told
    assert not any("Exposure" in trace.where or "mpp" in trace.where for trace in told)


def test_tags_of_a_plain_tiff(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "quiet.tif", coordinates(600, 400))
    assert [t for t in traces(SlideSource(str(tmp_path / "quiet.tif"))) if "DateTime" not in t.where] == []
    tifffile.imwrite(
        tmp_path / "a.tif",
        coordinates(600, 400),
        tile=(64, 64),
        photometric="rgb",
        datetime="1951:04:19 10:00:00",
    )
    assert Trace("tag DateTime", "1951:04:19 10:00:00") in traces(SlideSource(str(tmp_path / "a.tif")))


def test_what_is_no_slide_does_not_look_like_one_that_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "no.svs").write_bytes(b"no slide")
    with pytest.raises(SlideError):
        traces(SlideSource(str(tmp_path / "no.svs")))
    with pytest.raises(SlideError, match="copy it here"):
        traces(SlideSource("s3://b/s.svs"))


def test_the_command(aperio: Path, tmp_path: Path, wsi: Run) -> None:
    code, out, _ = wsi("doctor", "--privacy", aperio)
    assert code == 1
    assert all(secret in out for secret in SECRETS)
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    code, _, err = wsi("doctor", "--privacy", tmp_path / "broken.svs")
    assert (code, "broken.svs" in err) == (1, True)


def test_no_output_has_any_of_it(
    aperio: Path, tmp_path: Path, wsi: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_command, "load_engine", lambda models, cfg: RednessEngine())
    assert wsi("score", aperio, "-o", tmp_path / "out")[0] == 0
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(files) > 6
    for path in files:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in SECRETS), path
