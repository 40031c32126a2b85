"""Tables as people save them: which delimiter, which encoding, which words mean a number.

Text stays as it is written, for an image may be called ``0001``, ``1e5``, ``NA`` or ``True``;
numbers and flags are read one way or refused with the row and the value.
"""

from __future__ import annotations

import csv
import io
import unicodedata
import warnings
from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd

from raybrain.config import InputError
from raybrain.datasets.files import Root

ABSENT = ("", "n/a", "N/A", "NA", "nan", "NaN")
"""Words for a number that is not known; n/a is that of BIDS."""
YES = ("1", "1.0", "true", "yes", "y")
NO = ("0", "0.0", "false", "no", "n", "")
DELIMITERS = "\t,;"
"""A tab never occurs within a column name, a comma does: "(from WordNet, Google, ...)"."""
_PANDAS = (pd.errors.ParserError, pd.errors.ParserWarning)
_BYTE_ORDERS = (b"\xff\xfe", b"\xfe\xff")


def read_table(
    root: Root, path: str, *, columns: Iterable[str] = (), text: Collection[str] | None = ()
) -> pd.DataFrame:
    """Return a table whose delimiter is found by looking: some .tsv are comma separated.

    Parameters
    ----------
    root, path
        The file: UTF-8, or UTF-16 with a byte order mark.
    columns
        Which it must have.
    text
        Columns whose words are kept as they are written, nothing being ``""``; None for all. The
        types of the others are inferred, and `ABSENT` words are NaN there.

    Raises
    ------
    InputError
        If it cannot be read, has a column twice, or lacks one of ``columns``.
    """
    name = root.at(path)
    content = decode_text(root.read(path), name=name)
    first = content.split("\n", 1)[0].rstrip("\r")
    wanted = list(columns)
    present = [one for one in DELIMITERS if one in first]
    fitting = [
        one for one in present if set(wanted) <= {plain.strip('" ') for plain in first.split(one)}
    ]
    delimiter = next(iter(fitting or present), ",")
    try:
        header = next(csv.reader(io.StringIO(content), delimiter=delimiter), [])
        kept = set(header) if text is None else set(header) & set(text)
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header
            table = pd.read_csv(
                io.StringIO(content),
                sep=delimiter,
                dtype=dict.fromkeys(kept, str),
                keep_default_na=False,
                na_values={column: list(ABSENT) for column in header if column not in kept},
                index_col=False,
                low_memory=False,
            )
    except (ValueError, OverflowError, csv.Error, *_PANDAS) as error:
        raise InputError(f"{name} cannot be read as a table ({error}); {root.again}") from None
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise InputError(f"{name} has the column '{twice[0]}' twice; name each column once")
    # A column without a name has one of pandas' own, which nobody asks for.
    text_columns = [column for column in table.columns if column in kept]
    table[text_columns] = table[text_columns].fillna("")
    lacking = [column for column in wanted if column not in table.columns]
    if lacking:
        raise InputError(f"{name} has no column '{lacking[0]}'; {root.again}")
    return table


def decode_text(content: bytes, *, name: str) -> str:
    """Return the text of a file.

    Raises
    ------
    InputError
        If it is neither UTF-8 nor UTF-16 with a byte order mark: other encodings cannot be told
        apart.
    """
    encoding = "utf-16" if content[:2] in _BYTE_ORDERS else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not text in UTF-8 (byte {error.start}); save it again as UTF-8"
        ) from None
    if "\0" in text:
        raise InputError(f"{name} is not a text file; save it again as UTF-8")
    return text


def composed(text: str) -> str:
    """Return text with composed letters, as NFC has them: some file systems take them apart."""
    return unicodedata.normalize("NFC", text)


def whole_numbers(table: pd.DataFrame, column: str, *, name: str) -> np.ndarray:
    """Return a column as int64.

    Raises
    ------
    InputError
        If any value is no whole number.
    """
    values = numbers(table, column, name=name)
    bad = np.flatnonzero(
        ~(np.isfinite(values) & (np.abs(values) < 2**53) & (values == np.trunc(values)))
    )
    if len(bad):
        raise InputError(
            f"{name} has {_quoted(table, column, bad[0])} in column {column}, row {bad[0] + 1}; "
            f"it must be a whole number"
        )
    return values.astype(np.int64)


def numbers(table: pd.DataFrame, column: str, *, name: str) -> np.ndarray:
    """Return a column as float64, NaN where nothing is known.

    Raises
    ------
    InputError
        If a value is no number: ``40%`` and ``0,4`` are none.
    """
    values = table[column]
    if not pd.api.types.is_bool_dtype(values) and pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(dtype=np.float64)
    words = _words(values)
    found = pd.to_numeric(words.where(~words.isin(ABSENT)), errors="coerce")
    bad = np.flatnonzero(found.isna() & ~words.isin(ABSENT))
    if len(bad):
        raise InputError(
            f"{name} has '{words.iloc[bad[0]]}' in column {column}, row {bad[0] + 1}; write a "
            f"number with a decimal point and without a unit, such as 0.4"
        )
    return found.to_numpy(dtype=np.float64)


def flags(table: pd.DataFrame, column: str, *, name: str) -> np.ndarray:
    """Return a column of 0 and 1, true and false or yes and no as bool.

    Raises
    ------
    InputError
        If it holds anything else, such as the fractions that resampling leaves.
    """
    values = table[column]
    if pd.api.types.is_bool_dtype(values):
        return values.to_numpy(dtype=bool)
    if pd.api.types.is_numeric_dtype(values):
        found = values.fillna(0).to_numpy(dtype=np.float64)
        bad = np.flatnonzero((found != 0) & (found != 1))
        yes = found == 1
    else:
        words = _words(values).str.lower()
        yes = words.isin(YES).to_numpy()
        bad = np.flatnonzero(~yes & ~words.isin(NO).to_numpy())
    if len(bad):
        raise InputError(
            f"{name} has {_quoted(table, column, bad[0])} in column {column}, row {bad[0] + 1}; an "
            f"ROI's column holds 1 for its voxels and 0 for the others"
        )
    return np.asarray(yes, dtype=bool)


def check_ceiling(ceiling: np.ndarray, *, name: str) -> None:
    """Raise `InputError` unless explainable variances lie in 0..1; NaN is unknown."""
    if (ceiling > 1.0).any() or (ceiling < 0.0).any():
        raise InputError(
            f"{name} has noise ceilings outside 0..1; write the explainable variance of a single "
            f"trial as a fraction (percent / 100), or nothing where it is not known"
        )


def _words(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna(), "").astype(str).str.strip()


def _quoted(table: pd.DataFrame, column: str, row: int) -> str:
    value = table[column].iloc[row]
    return "nothing" if pd.isna(value) or value == "" else f"'{value}'"
