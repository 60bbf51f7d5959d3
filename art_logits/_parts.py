"""The Parquet files of a run: one file of rows per part, and the parts as one table.

:class:`PartTable` leaves the logits on the disk and reads them part by part when they are wanted: of 50,000
samples and 1000 classes one column of logits takes 200 MB, and a run has one per model and attack.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from art_logits._extras import require
from art_logits._files import write_atomically
from art_logits._text import shortened

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
else:
    pa = require("pyarrow", extra="evaluate")
    pq = require("pyarrow.parquet", extra="evaluate")

__all__ = [
    "PICTURES",
    "ROWS",
    "PartTable",
    "check_alike",
    "finished_parts",
    "is_logits",
    "part_path",
    "read_part",
    "write_part",
]

ROWS, PICTURES = "records", "thumbnails"
"""The folders of a run that hold parts."""

_PART = re.compile(r"part-(\d{5,})\.parquet")
_T = TypeVar("_T")


def is_logits(column: str) -> bool:
    """Whether a column of records holds logits.

    >>> is_logits("clean_logits"), is_logits("pgd.logits"), is_logits("pgd.success")
    (True, True, False)
    """
    return column == "clean_logits" or column.endswith((".clean_logits", ".logits"))


def part_path(folder: Path, part: int, kind: str = ROWS) -> Path:
    """Where a part of the run in ``folder`` lies."""
    return folder / kind / f"part-{part:05d}.parquet"


def finished_parts(folder: Path, kind: str = ROWS) -> set[int]:
    """Numbers of the parts of a kind that are on disk."""
    if not (folder / kind).is_dir():
        return set()
    matches = (_PART.fullmatch(path.name) for path in (folder / kind).iterdir())
    return {int(match.group(1)) for match in matches if match}


def write_part(table: pa.Table, path: Path) -> None:
    """Write a part, atomically."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue().to_pybytes())


def read_part(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part.

    Args:
        path: of the part.
        columns: those that are wanted; all if None.

    Returns:
        The columns, in the order of the file.

    Raises:
        ValueError: the file is corrupt.
    """
    return _opened(path, lambda file: file.read(columns=columns))


def check_alike(schemas: Sequence[pa.Schema]) -> None:
    """Refuse parts whose columns differ.

    Raises:
        ValueError: there are no parts, or one differs from the first.
    """
    if not schemas:
        raise ValueError("tables: expected at least one part, got none; evaluate at least one sample")
    for index, schema in enumerate(schemas):
        if schema != schemas[0]:
            columns = sorted({field.name for field in set(schema) ^ set(schemas[0])}) or "their order"
            raise ValueError(f"tables: expected parts of one schema, but part {index} differs in {columns}")


class PartTable:
    """The parts of a run as one table: its logits stay on disk, everything else is in memory.

    It has of a ``pyarrow.Table`` what records need. The files must stay where they are.

    Args:
        paths: of the parts, in the order of their rows.

    Raises:
        ValueError: there are no parts, their columns differ, or one of them is corrupt.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        schemas = [_opened(path, lambda file: file.schema_arrow) for path in self._paths]
        check_alike(schemas)
        self.schema: pa.Schema = schemas[0]
        self.column_names: list[str] = self.schema.names
        held = [name for name in self.column_names if not is_logits(name)]
        self._held = pa.concat_tables([read_part(path, held) for path in self._paths])
        self.num_rows: int = self._held.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        """One column; logits are read for it."""
        if name in self._held.column_names:
            return self._held.column(name)
        # Chunk by chunk, so that nothing is in memory twice.
        chunks = [chunk for part in self.parts([name]) for chunk in part.column(name).iterchunks()]
        return pa.chunked_array(chunks, type=self.schema.field(name).type)

    def parts(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Columns part by part, of which only one is in memory at a time.

        Raises:
            ValueError: a part is corrupt, or has nulls among its logits.
        """
        for path in self._paths:
            table = read_part(path, names)
            for name in names:
                if table.column(name).null_count:
                    raise ValueError(
                        f"{path}: expected {name} without nulls, got {table.column(name).null_count}"
                    )
            yield table

    def read(self) -> pa.Table:
        """All columns in memory."""
        return pa.table([self.column(name) for name in self.column_names], schema=self.schema)


def _opened(path: Path, use: Callable[[Any], _T]) -> _T:
    """What ``use`` makes of a Parquet file."""
    try:
        with pq.ParquetFile(path) as file:
            return use(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is corrupt ({shortened(str(error))}); delete it and run again with --resume"
        ) from error
