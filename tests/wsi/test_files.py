"""Tables as they are read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsi.files import csv_rows, csv_text


class TestCsvRows:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(csv_text(("slide", "x"), [("a, b", 3), ('"c"\nd', 4)]))
        assert csv_rows(tmp_path / "t.csv") == [{"slide": "a, b", "x": "3"}, {"slide": '"c"\nd', "x": "4"}]

    def test_excel_s_mark_empty_lines_and_short_rows(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfslide,x\r\n\r\n\xc3\xa9\r\n")
        assert csv_rows(tmp_path / "t.csv") == [{"slide": "é", "x": None}]

    def test_a_header_alone_and_an_empty_file_have_no_row(self, tmp_path: Path) -> None:
        for text in ("", "slide,x\n"):
            (tmp_path / "t.csv").write_text(text)
            assert csv_rows(tmp_path / "t.csv") == []

    @pytest.mark.parametrize("data", [b"slide\n\xff\n", b"slide\n" + b"a" * 200_000])
    def test_what_is_no_table_is_a_value_error(self, tmp_path: Path, data: bytes) -> None:
        """The second has a cell above the limit of 131,072 characters, for which csv has an error of its own."""
        (tmp_path / "t.csv").write_bytes(data)
        with pytest.raises(ValueError, match="decode|field limit"):
            csv_rows(tmp_path / "t.csv")
        with pytest.raises(OSError, match="No such file"):
            csv_rows(tmp_path / "none.csv")
