"""Data sets of the Hugging Face hub as sources of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2c.data.rows import Rows
from gpt2c.data.sources import Source, Text
from gpt2c.data.tables import DATA_EXTRA
from gpt2c.errors import UserError, reason

PREFIX = "hf:"


class Hub(Source):
    """`hf:NAME[:CONFIG]`, a data set's split `train`, streamed by the library datasets.

    position: number of rows before, and the library's own state. NAME may be a folder, which has no revision.
    """

    position = {"row": 0, "state": None}

    def __init__(self, name: str, rows: Rows) -> None:
        super().__init__(name)
        self._rows = rows
        self._path, _, self._config = name.removeprefix(PREFIX).partition(":")
        self._revision: str | None = None

    def identity(self) -> dict[str, Any]:
        """Name and revision, the latest one unless another has been begun with."""
        if self._revision is None and not Path(self._path).is_dir():
            datasets()
            from huggingface_hub import HfApi

            try:
                self._revision = HfApi().dataset_info(self._path).sha
            except Exception as error:  # its errors (network, missing, private) share no base class
                raise self._failed(error) from error
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
                where = f"{self.name}, row {row},"
                text = self._rows.taken(lambda value=value, where=where: self._rows.document(value, where))
                self.position = {"row": row, "state": data.state_dict()}
                if text is not None:
                    yield text
        except UserError:
            raise
        except Exception as error:  # as above
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> UserError:
        return UserError(f"taking {self.name} from the Hugging Face hub failed: {reason(error)}")


def datasets() -> Any:
    """The library; UserError if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"a data set of the Hugging Face hub needs the package datasets: {DATA_EXTRA}") from error
    return datasets
