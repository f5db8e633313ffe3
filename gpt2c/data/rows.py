"""Sources of rows, each of which is a document: JSON lines, Parquet, and data sets of the Hugging Face hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gpt2c.data.packed import SUFFIXES, unpacked
from gpt2c.data.sources import File, Source, Text, not_utf8
from gpt2c.errors import UserError, reason

ROWS_AT_ONCE = 64
HUB = "hf:"
DATA_EXTRA = 'install it with pip install "gpt2c[data]"'


class JsonLines(File):
    """A JSON object a line, its text in `field`. position: byte of the unpacked file and number of lines before it."""

    position = {"byte": 0, "line": 0}

    def __init__(self, path: Path, field: str) -> None:
        super().__init__(path)
        self._field = field

    def __iter__(self) -> Iterator[Text]:
        byte, line = self.position["byte"], self.position["line"]
        with unpacked(self.path, byte) as file:
            for raw in file:
                line += 1
                text = self._text(raw, byte, line)
                byte += len(raw)
                self.position = {"byte": byte, "line": line}
                if text is not None:
                    yield text

    def _text(self, raw: bytes, byte: int, line: int) -> Text | None:
        """The line's document; None if the line is blank."""
        where = f"{self.name}, line {line},"
        try:
            decoded = raw.decode("utf-8")
            row = json.loads(decoded) if decoded.strip() else None
        except UnicodeDecodeError as error:
            raise not_utf8(self.name, byte, error) from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} is not JSON: {reason(error)}") from error
        return None if not decoded.strip() else document(row, self._field, where)


class Parquet(File):
    """A Parquet file, its texts in the column `field`. position: number of rows before."""

    position = {"row": 0}

    def __init__(self, path: Path, field: str) -> None:
        super().__init__(path)
        self._field = field

    def __iter__(self) -> Iterator[Text]:
        try:
            import pyarrow as arrow
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise UserError(f"reading {self.name} needs the package pyarrow: {DATA_EXTRA}") from error
        with ExitStack() as stack:
            file = stack.enter_context(unpacked(self.path))
            if self.path.suffix.lower() in SUFFIXES:  # it is read from its end
                packed, file = file, stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(packed, file)
            try:
                table = parquet.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
                self._require_column(table.schema_arrow.names)
                yield from self._rows(table)
            except (arrow.ArrowException, OSError) as error:
                raise UserError(f"{self.name} is not a whole Parquet file: {reason(error)}") from error
            except UnicodeDecodeError as error:
                where = f"{self.name}, in one of the {ROWS_AT_ONCE} rows after row {self.position['row']},"
                raise not_utf8(where, 0, error) from error

    def _require_column(self, names: list[str]) -> None:
        if self._field not in names:
            raise UserError(
                f"{self.name} has no column {self._field!r}: expected --field to be one of {', '.join(names)}"
            )

    def _rows(self, table: Any) -> Iterator[Text]:
        row, before = self.position["row"], 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            first = max(0, row - before)  # of this group
            before += rows
            if first >= rows:
                continue
            seen = 0
            for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[self._field]):
                skipped = min(max(0, first - seen), len(batch))
                seen += len(batch)
                for value in batch.column(0)[skipped:].to_pylist():
                    row += 1
                    self.position = {"row": row}
                    yield document({self._field: value}, self._field, f"{self.name}, row {row},")


class Hub(Source):
    """`hf:NAME[:CONFIG]`, a data set's split `train`, streamed by the library datasets.

    position: number of rows before, and the library's own state. NAME may be a folder, which has no revision.
    """

    position = {"row": 0, "state": None}

    def __init__(self, name: str, field: str) -> None:
        super().__init__(name)
        self._field = field
        self._path, _, self._config = name.removeprefix(HUB).partition(":")
        self._revision: str | None = None

    def identity(self) -> dict[str, Any]:
        """Name and revision, the latest one unless another has been begun with."""
        if self._revision is None and not Path(self._path).is_dir():
            datasets()
            from huggingface_hub import HfApi

            try:
                self._revision = HfApi().dataset_info(self._path).sha
            except Exception as error:  # its errors (network, missing, private) share no base class
                raise UserError(f"taking {self.name} from the Hugging Face hub failed: {reason(error)}") from error
        return {"name": self.name, "revision": self._revision}

    def go_on(self, recorded: dict[str, Any]) -> None:
        """Take the revision that was begun with."""
        self._revision = recorded["revision"]

    def __iter__(self) -> Iterator[Text]:
        load = datasets().load_dataset
        row = self.position["row"]
        try:
            data = load(
                self._path, self._config or None, split="train", streaming=True, revision=self.identity()["revision"]
            )
            if self.position["state"] is not None:
                data.load_state_dict(self.position["state"])
            for value in data:
                row += 1
                self.position = {"row": row, "state": data.state_dict()}
                yield document(value, self._field, f"{self.name}, row {row},")
        except UserError:
            raise
        except Exception as error:  # as above
            raise UserError(f"taking {self.name} from the Hugging Face hub failed: {reason(error)}") from error


def datasets() -> Any:
    """The library; UserError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"a data set of the Hugging Face hub needs the package datasets: {DATA_EXTRA}") from error
    return datasets


def document(row: Any, field: str, where: str) -> Text:
    """A row's text. UserError if it has none, or one that UTF-8 cannot hold."""
    if not isinstance(row, dict) or field not in row:
        found = f"the fields {', '.join(row)}" if isinstance(row, dict) else type(row).__name__
        raise UserError(f"{where} has no field {field!r}: found {found}, name the text's field with --field")
    text = row[field]
    if not isinstance(text, str):
        raise UserError(f"{where} has a {field!r} that is no text: found {type(text).__name__}")
    try:
        return Text(text, True, len(text.encode("utf-8")))
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has half of a character, {ascii(text[error.start])}: expected UTF-8 text") from error
