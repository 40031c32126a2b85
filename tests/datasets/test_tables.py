"""Tables as people save them: words stay words, numbers are read one way or refused."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrain.config import InputError
from raybrain.datasets.files import Root
from raybrain.datasets.tables import flags, numbers, read_table, whole_numbers

WORDS = ["0001", "1500000.010000", "1e5", "NA", "True", "null", "None", "nan", "café", " x", ""]


def table_of(folder: Path, content: str | bytes, **how: object) -> pd.DataFrame:
    raw = content.encode() if isinstance(content, str) else content
    (folder / "t.csv").write_bytes(raw)
    return read_table(Root(str(folder)), "t.csv", **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "encoded",
    [
        lambda text: text.encode(),
        lambda text: text.encode("utf-8-sig"),
        lambda text: text.encode("utf-16"),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace(";", "\t").encode(),
        lambda text: text.replace(";", ",").encode(),
    ],
    ids=["utf-8", "bom", "utf-16", "crlf", "tabs", "commas"],
)
def test_words_and_numbers_survive_however_a_table_is_saved(
    tmp_path: Path, encoded: Callable[[str], bytes]
) -> None:
    lines = [f"{word};{k}.5;n/a" for k, word in enumerate(WORDS)]
    content = "image_id;value;unknown\n" + "\n".join(lines) + "\n"
    table = table_of(tmp_path, encoded(content), columns=("image_id",), text=("image_id",))
    assert table["image_id"].tolist() == WORDS
    np.testing.assert_array_equal(numbers(table, "value", name="t"), np.arange(len(WORDS)) + 0.5)
    assert np.isnan(numbers(table, "unknown", name="t")).all()


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8), min_size=1),
    delimiter=st.sampled_from("\t,;"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_words_come_back(words: list[str], delimiter: str, encoding: str) -> None:
    lines = io.StringIO(newline="")
    writer = csv.writer(lines, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(["image_id", "value"])
    writer.writerows([[word, k] for k, word in enumerate(words)])
    with tempfile.TemporaryDirectory() as folder:
        content = lines.getvalue().encode(encoding)
        table = table_of(Path(folder), content, columns=("image_id",), text=("image_id",))
    assert table["image_id"].tolist() == words
    assert whole_numbers(table, "value", name="t").tolist() == list(range(len(words)))


def test_the_delimiter_is_that_which_gives_the_columns(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, 'image_id,"caption; free, text"\na,"x; y"\n', columns=("image_id",), text=None
    )
    assert table.loc[0, "caption; free, text"] == "x; y"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("image_id\ncaf\xe9\n".encode("cp1252"), r"t\.csv is not text in UTF-8 \(byte 12\)"),
        (b"image_id\n\x00\x00\n", "is not a text file"),
        ("image_id,a,a\n1,2,3\n", "has the column 'a' twice"),
        ("image_id,a\n1,2,3\n", "cannot be read as a table"),
        ("image_id,a\n1,2\n1,2,3\n", "cannot be read as a table"),
        ('image_id,a\n"1,2\n', "cannot be read as a table"),
        ("", "cannot be read as a table"),
        ("a\n1\n", "has no column 'image_id'; download it again"),
    ],
)
def test_what_is_no_table_is_one_sentence(
    tmp_path: Path, content: str | bytes, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        table_of(tmp_path, content, columns=("image_id",), text=("image_id",))


@pytest.mark.parametrize("word", ["40%", "0,4", "1.5.2", "one", "4 mm", "1_000x"])
def test_what_is_no_number_is_named_with_its_row(tmp_path: Path, word: str) -> None:
    table = table_of(tmp_path, f"a;b\n1;2\n{word};2\n")
    with pytest.raises(InputError, match=rf"has '{word}' in column a, row 2; write a number"):
        numbers(table, "a", name="t.csv")


@pytest.mark.parametrize("word", ["1.5", "", "inf", "1e300", "n/a"])
def test_whole_numbers_are_whole(tmp_path: Path, word: str) -> None:
    table = table_of(tmp_path, f"a;b\n1;2\n{word};2\n")
    with pytest.raises(InputError, match=r"in column a, row 2; it must be a whole number"):
        whole_numbers(table, "a", name="t.csv")
    good = table_of(tmp_path, "a;b\n-3;2\n4.0;2\n")
    assert whole_numbers(good, "a", name="t.csv").tolist() == [-3, 4]


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("True", "False"), ("yes", "no"), ("1.0", "0.0")]
)
def test_flags_are_read_in_every_usual_spelling(tmp_path: Path, yes: str, no: str) -> None:
    table = table_of(tmp_path, f"roi,other\n{yes},1\n{no},1\n{yes},1\n")
    assert flags(table, "roi", name="t").tolist() == [True, False, True]


@pytest.mark.parametrize("word", ["0.7", "2", "-1", "V1", "maybe", "40%"])
def test_a_flag_that_is_none_is_refused(tmp_path: Path, word: str) -> None:
    table = table_of(tmp_path, f"roi,other\n1,1\n{word},1\n")
    with pytest.raises(InputError, match=r"in column roi, row 2; an ROI's column holds 1"):
        flags(table, "roi", name="t")


def test_a_column_without_a_name_is_nobodys(tmp_path: Path) -> None:
    table = table_of(tmp_path, "image_id,,b\n01,x,NA\n02,,y\n", columns=("image_id",), text=None)
    assert table["image_id"].tolist() == ["01", "02"]
    assert table["b"].tolist() == ["NA", "y"]
