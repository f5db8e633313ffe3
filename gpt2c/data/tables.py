"""Tables as sources of rows: CSV, and Parquet."""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from gpt2c.data.encoding import not_utf8
from gpt2c.data.packed import SUFFIXES, Unpacked, inner_suffix, unpacked
from gpt2c.data.rows import BadRow, Rows
from gpt2c.data.sources import File, Text, opened_text
from gpt2c.errors import UserError, reason

ROWS_AT_ONCE = 64
DIALECTS = {".csv": csv.excel, ".tsv": csv.excel_tab}
LONGEST_FIELD = 2**31 - 1
DATA_EXTRA = 'install it with pip install "gpt2c[data]"'


class Table(File):
    """A file of rows with named columns, of which one holds the texts."""

    def __init__(self, path: Path, rows: Rows) -> None:
        super().__init__(path)
        self._rows = rows

    def _require_column(self, names: list[str]) -> None:
        if self._rows.field not in names:
            raise UserError(
                f"{self.name} has no column {self._rows.field!r}: name the texts' with gpt2c prepare --field, one of "
                f"{', '.join(names)}"
            )


class Csv(Table):
    """Values between commas, or in a .tsv tabs, with quotes around those that hold one; the first row has the names.
    position: byte of the unpacked file, and number of rows before it, names included."""

    position = {"byte": 0, "row": 0}

    def __iter__(self) -> Iterator[Text]:
        csv.field_size_limit(LONGEST_FIELD)
        with opened_text(self.path) as (file, byte):
            lines = _Lines(file, byte)
            names = self._names(lines)
        self._require_column(names)
        byte, row = (lines.byte, 1) if not self.position["byte"] else self.position.values()
        with opened_text(self.path, byte) as (file, _):
            lines = _Lines(file, byte)
            reader = self._reader(lines)
            while lines.more():
                row += 1
                where = f"{self.name}, row {row},"
                text = self._rows.taken(lambda where=where: self._text(reader, names, where))
                self.position, self.consumed = {"byte": lines.byte, "row": row}, file.disk.tell()
                if text is not None:
                    yield text

    def _reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        return csv.reader(lines, DIALECTS[inner_suffix(self.path)], strict=True)

    def _names(self, lines: _Lines) -> list[str]:
        try:
            return next(self._reader(lines), [])
        except csv.Error as error:
            ends = " (a carriage return alone ends no line: convert the line ends)" if "new-line" in str(error) else ""
            raise UserError(
                f"{self.name}, row 1, which has the columns' names, is damaged{ends}: {reason(error)}"
            ) from error

    def _text(self, reader: Iterator[list[str]], names: list[str], where: str) -> Text | None:
        """The next row's document; None if the row is blank."""
        try:
            values = next(reader)
        except csv.Error as error:
            raise BadRow(f"{where} is damaged: {reason(error)}") from error
        if not values:
            return None
        if len(values) != len(names):
            raise BadRow(f"{where} has {len(values)} values, expected {len(names)}: {', '.join(names)}")
        text = values[names.index(self._rows.field)]
        if not text.isascii() and any("\udc80" <= c <= "\udcff" for c in text):
            raise BadRow(f"{where} is not UTF-8 text")
        return self._rows.document({self._rows.field: text}, where)


class _Lines:
    """The lines of a file; `byte`: where the next one begins. Bytes that are not UTF-8 become halves of characters."""

    def __init__(self, file: Unpacked, byte: int) -> None:
        self._file, self.byte = file, byte

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline()
        if not line:
            raise StopIteration
        self.byte += len(line)
        return line.decode("utf-8", "surrogateescape")

    def more(self) -> bool:
        """Whether there is a next one."""
        return bool(self._file.peek(1))


class Parquet(Table):
    """A Parquet file. position: number of rows before."""

    position = {"row": 0}

    def __iter__(self) -> Iterator[Text]:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UserError(f"reading {self.name} needs the package pyarrow: {DATA_EXTRA}") from error
        with ExitStack() as stack:
            file: BinaryIO = stack.enter_context(unpacked(self.path))
            if self.path.suffix.lower() in SUFFIXES:  # it is read from its end
                packed, file = file, stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(packed, file)
            try:
                table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
                self._require_column(table.schema_arrow.names)
                yield from self._texts(table)
            except (arrow.ArrowException, OSError) as error:
                raise UserError(f"{self.name} is not a whole Parquet file: {reason(error)}") from error

    def _texts(self, table: Any) -> Iterator[Text]:
        row, before = self.position["row"], 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            first = max(0, row - before)  # of this group
            before += rows
            if first >= rows:
                continue
            seen = 0
            for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[self._rows.field]):
                skipped = min(max(0, first - seen), len(batch))
                seen += len(batch)
                for value in batch.column(0)[skipped:]:
                    row += 1
                    where = f"{self.name}, row {row},"
                    text = self._rows.taken(lambda value=value, where=where: self._text(value, where))
                    self.position = {"row": row}
                    self.consumed = self.size * row // table.metadata.num_rows
                    if text is not None:
                        yield text

    def _text(self, value: Any, where: str) -> Text:
        try:
            return self._rows.document({self._rows.field: value.as_py()}, where)
        except UnicodeDecodeError as error:
            raise BadRow(str(not_utf8(where, 0, error))) from error
