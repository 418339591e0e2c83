"""Tables as they are read back."""

from __future__ import annotations

import pytest

from wsi.files import csv_rows, csv_text


class TestCsvRows:
    def test_what_is_written_is_read(self) -> None:
        text = csv_text(("slide", "x"), [("a, b", 3), ('"c"\nd', 4)])
        assert csv_rows(text.encode()) == [{"slide": "a, b", "x": "3"}, {"slide": '"c"\nd', "x": "4"}]

    def test_excel_s_mark_empty_lines_and_short_rows(self) -> None:
        assert csv_rows(b"\xef\xbb\xbfslide,x\r\n\r\n\xc3\xa9\r\n") == [{"slide": "é", "x": None}]

    @pytest.mark.parametrize("content", [b"", b"slide,x\n"])
    def test_a_header_alone_and_an_empty_file_have_no_row(self, content: bytes) -> None:
        assert csv_rows(content) == []

    @pytest.mark.parametrize("content", [b"slide\n\xff\n", b"slide\n" + b"a" * 200_000])
    def test_what_is_no_table_is_a_value_error(self, content: bytes) -> None:
        """The second has a cell above the limit of 131,072 characters, for which csv has an error of its own."""
        with pytest.raises(ValueError, match="decode|field limit"):
            csv_rows(content)
