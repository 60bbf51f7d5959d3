"""One row per sample: what every analysis and report is made from, in memory and on disk.

On disk a run is a folder::

    DIR/manifest.json               what was run ("identity"), with which versions, at what cost
    DIR/records/part-00000.parquet  rows, in the order of the parts
    DIR/records/part-00001.parquet
    DIR/thumbnails/part-00000.parquet   small pictures of some of the rows, for reports (only of images)

Every file is written under a temporary name in its own folder, flushed to the disk and renamed, so a
reader sees a whole file or none, and an interrupted run keeps the parts it finished.

Columns, for ``C`` classes: ``sample_id``, ``label``, ``clean_prediction`` (int64) and ``clean_logits``
(``C`` float32); for each attack ``A``: ``A.prediction`` (int64), ``A.success`` (bool), ``A.distance``
(float32, in the attack's norm), ``A.logits`` (``C`` float32), ``A.forwards``, ``A.backwards`` and
``A.zero_gradients`` (int32), and ``A.success_8bit`` (bool: success also of the inputs rounded to 8 bits; not
in records of earlier versions); passes are what the attack takes alone, the clean one that several share is
in each. With a reference model all but the first two again, prefixed ``reference.``.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from art_logits._extras import require
from art_logits._files import LOCK, FolderLock, write_atomically
from art_logits._parts import (
    PICTURES,
    ROWS,
    PartTable,
    check_alike,
    finished_parts,
    is_logits,
    part_path,
    read_part,
    write_part,
)
from art_logits._text import shortened

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from art_logits.analysis import ClasswiseReport, LogitReport
else:
    pa = require("pyarrow", extra="evaluate")

__all__ = [
    "FORMAT",
    "THUMBNAILS_PER_KIND",
    "Records",
    "RecordsWriter",
    "best_thumbnails",
    "check_attack_name",
    "records_schema",
    "thumbnails_schema",
]

FORMAT = 1
"""Version of the layout on disk; a reader refuses every other."""

THUMBNAILS_PER_KIND = 6
"""How many samples are kept as pictures for each reason to show one, in a part and in a run."""

ModelName = Literal["model", "reference"]

_MANIFEST = "manifest.json"
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
_ROUNDED = ".success_8bit"
_RESERVED = ("reference", "clean")
_DEFAULT_PART_SIZE = 512
# Rows at a time of what is made from logits: keeps float32 copies of 1000 classes below 20 MB.
_BLOCK = 4096

_log = logging.getLogger(__name__)


def check_attack_name(name: str) -> str:
    """Return ``name`` if it can name an attack's columns.

    Args:
        name: printable characters without a dot, which separates an attack from its columns.

    Returns:
        ``name`` unchanged.

    Raises:
        ValueError: a dot, an unprintable character, an empty name, or one of the reserved ``reference`` and
            ``clean``.

    >>> check_attack_name("pgd:steps=50")
    'pgd:steps=50'
    """
    if not name or name in _RESERVED or "." in name or not name.isprintable():
        raise ValueError(
            f"attack name: expected printable characters without a dot, other than "
            f"{' and '.join(_RESERVED)}, got {name!r}; rename the attack"
        )
    return name


def records_schema(attacks: Sequence[str], num_classes: int, *, reference: bool = False) -> pa.Schema:
    """Columns and types of the records of a run.

    Args:
        attacks: names of the attacks, in order.
        num_classes: ``C``, the length of every logit vector.
        reference: whether a reference model was attacked too.

    Returns:
        The ``pyarrow.Schema``, in the order of the columns on disk.

    Raises:
        ValueError: an attack's name cannot name columns.

    >>> records_schema(["pgd"], 10).names[:5]
    ['sample_id', 'label', 'clean_prediction', 'clean_logits', 'pgd.prediction']
    """
    logits = pa.list_(pa.float32(), num_classes)
    fields = [("sample_id", pa.int64()), ("label", pa.int64())]
    for prefix in ("", "reference.") if reference else ("",):
        fields += [(f"{prefix}clean_prediction", pa.int64()), (f"{prefix}clean_logits", logits)]
        for attack in attacks:
            name = prefix + check_attack_name(attack)
            fields += [
                (f"{name}.prediction", pa.int64()),
                (f"{name}.success", pa.bool_()),
                (f"{name}.distance", pa.float32()),
                (f"{name}.logits", logits),
                (f"{name}.forwards", pa.int32()),
                (f"{name}.backwards", pa.int32()),
                (f"{name}.zero_gradients", pa.int32()),
                (f"{name}{_ROUNDED}", pa.bool_()),
            ]
    return pa.schema(fields)


def thumbnails_schema() -> pa.Schema:
    """Columns and types of the thumbnails of a run: one row per sample and reason to show it.

    Returns:
        ``kind`` (why it is shown), ``score`` (how well it stands for that; the larger the better),
        ``sample_id``, ``attack`` (the one that made ``adversarial``), three PNG files ``clean``,
        ``adversarial`` and ``difference`` (amplified: middle grey is 0, the ends are
        ``-+ largest_difference``), and ``largest_difference`` in the unit of the inputs.

    >>> thumbnails_schema().names[:3]
    ['kind', 'score', 'sample_id']
    """
    return pa.schema(
        [
            ("kind", pa.string()),
            ("score", pa.float32()),
            ("sample_id", pa.int64()),
            ("attack", pa.string()),
            ("clean", pa.binary()),
            ("adversarial", pa.binary()),
            ("difference", pa.binary()),
            ("largest_difference", pa.float32()),
        ]
    )


def best_thumbnails(table: pa.Table, limit: int = THUMBNAILS_PER_KIND) -> NDArray[np.int64]:
    """The rows of the highest score of each kind.

    Args:
        table: of :func:`thumbnails_schema`, such as the parts of a run brought together.
        limit: how many of each kind.

    Returns:
        Their indices in ``table``, ascending; of equal scores the first.
    """
    kinds = np.asarray(table.column("kind").to_pylist(), dtype=str)
    order = np.argsort(-table.column("score").to_numpy(), kind="stable")
    chosen = [order[kinds[order] == kind][:limit] for kind in np.unique(kinds)]
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *chosen]))


class Records:
    """One row per sample of an evaluation, and the manifest that says how it came about.

    Args:
        table: a ``pyarrow.Table`` with the columns of :func:`records_schema`; further columns are kept. Or
            the parts of a run, whose logits stay on disk (:meth:`load`).
        manifest: what was run; ``identity.class_names`` and the hashes in it are read here and in analysis.
        thumbnails: pictures of some of the samples, of :func:`thumbnails_schema`; default none.

    Raises:
        ValueError: no rows, a column that is missing, null or of another type, an attack's name that cannot
            be one, labels outside ``[0, C)``, class names that are not ``C``, or thumbnails of other columns.
    """

    def __init__(
        self,
        table: pa.Table | PartTable,
        manifest: Mapping[str, Any] | None = None,
        thumbnails: pa.Table | None = None,
    ) -> None:
        _check_table(table)
        self._rows = table
        self.thumbnails = _checked_thumbnails(thumbnails)
        self.manifest: dict[str, Any] = dict(manifest or {})
        names = self._identity.get("class_names")
        if names is not None and len(names) != self.num_classes:
            raise ValueError(
                f"manifest: expected {self.num_classes} identity.class_names, one per logit, got {len(names)}"
            )

    @classmethod
    def from_parts(
        cls,
        tables: Iterable[pa.Table],
        manifest: Mapping[str, Any] | None = None,
        thumbnails: Iterable[pa.Table] = (),
    ) -> Records:
        """Concatenate parts in memory.

        Args:
            tables: tables of one schema, in the order of their rows.
            manifest: as for the class.
            thumbnails: of the parts that have any, in the same order; the best of each kind are kept.

        Returns:
            The records of all parts.

        Raises:
            ValueError: there are no parts, their columns differ, or the class refuses the result.
        """
        parts = list(tables)
        check_alike([part.schema for part in parts])
        return cls(pa.concat_tables(parts), manifest, _best_of(thumbnails))

    @classmethod
    def load(cls, directory: str | os.PathLike[str], *, partial: bool = False, lazy: bool = False) -> Records:
        """Read a run from its folder; needs neither the model nor the data.

        Args:
            directory: the folder that holds ``manifest.json`` and ``records/``.
            partial: also read a run that was interrupted, as far as it got.
            lazy: leave the logits on disk and read them part by part whenever they are wanted. For runs with
                so many samples and classes that they do not fit in memory; the folder must stay as it is.

        Returns:
            The records, ordered by part.

        Raises:
            FileNotFoundError: there is no run in ``directory``.
            ValueError: the manifest is of another format or no JSON, the run is interrupted (and ``partial``
                is false), or parts are missing, corrupt or inconsistent.
        """
        folder = Path(directory)
        manifest = read_manifest(folder)
        parts = finished_parts(folder)
        if not manifest.get("complete") and not partial:
            raise ValueError(
                f"{folder} holds an interrupted run ({len(parts)} finished parts): continue it with "
                "--resume, or read what is there with Records.load(..., partial=True)"
            )
        if not partial:
            _check_contiguous(folder, parts)
        if not parts:
            raise ValueError(f"{folder / ROWS} holds no finished part; run the evaluation again")
        paths = [part_path(folder, part) for part in sorted(parts)]
        pictures = [
            read_part(part_path(folder, part, PICTURES))
            for part in sorted(parts & finished_parts(folder, PICTURES))
        ]
        if lazy:
            records = cls(PartTable(paths), manifest, _best_of(pictures))
        else:
            records = cls.from_parts((read_part(path) for path in paths), manifest, pictures)
        if not partial:
            _check_rows(folder, records)
        return records

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write the records as a run's folder, which :meth:`load` reads.

        Args:
            directory: a folder that is empty or does not exist yet.

        Raises:
            FileExistsError: ``directory`` holds something already.
        """
        writer = RecordsWriter(Path(directory), self.manifest, resume=False)
        size = self._identity.get("part_size") or _DEFAULT_PART_SIZE
        table = self.table
        for part, start in enumerate(range(0, len(self), size)):
            writer.write(part, table.slice(start, size), None if part else self.thumbnails)
        writer.finish(self.manifest.get("passes", {}))

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def __repr__(self) -> str:
        models = [str(_dig(self._identity, "model", "name") or "model")]
        if self.has_reference:
            models.append(f"reference {_dig(self._identity, 'reference', 'name') or 'model'}")
        data = _dig(self._identity, "data", "name") or "data"
        attacks = ", ".join(self.attacks) or "no attack"
        return f"Records({len(self)} x {data}, {self.num_classes} classes; {' vs '.join(models)}; {attacks})"

    @property
    def table(self) -> pa.Table:
        """All columns as one ``pyarrow.Table``; of lazily loaded records it is read anew each time."""
        return self._rows.read() if isinstance(self._rows, PartTable) else self._rows

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in their order."""
        return list(self._rows.column_names)

    @property
    def attacks(self) -> list[str]:
        """Names of the attacks, in the order in which they ran."""
        return _attack_names(self.columns)

    @property
    def class_names(self) -> list[str]:
        """Names of the ``C`` classes; their indices as text where the manifest names none."""
        names = self._identity.get("class_names")
        return [str(name) for name in (range(self.num_classes) if names is None else names)]

    @property
    def num_classes(self) -> int:
        """``C``, the length of every logit vector."""
        return int(self._rows.schema.field("clean_logits").type.list_size)

    @property
    def has_reference(self) -> bool:
        """Whether a reference model was attacked too."""
        return "reference.clean_logits" in self.columns

    @property
    def data_hash(self) -> str | None:
        """Hash of the data that was evaluated, where the manifest states one."""
        value = _dig(self._identity, "data", "hash")
        return None if value is None else str(value)

    def column(self, name: str) -> NDArray[Any]:
        """One column as an array; for one part without a copy, hence read-only.

        Args:
            name: such as ``label``, ``pgd.success`` or ``reference.pgd.logits``.

        Returns:
            ``(N,)`` in the column's type; ``(N, C)`` float32 for logits.

        Raises:
            KeyError: there is no such column.
        """
        return _as_array(self._rows.column(self._known(name)))

    def blocks(self, *names: str) -> Iterator[tuple[slice, list[NDArray[Any]]]]:
        """Columns piece by piece: what is made from logits row by row need not hold all of them.

        Args:
            *names: as for :meth:`column`.

        Yields:
            Which rows, and their values in each column; at most 4096 rows at a time, in order.

        Raises:
            KeyError: there is no such column.
        """
        known, start = [self._known(name) for name in names], 0
        for table in self._rows.parts(known) if isinstance(self._rows, PartTable) else [self._rows]:
            for offset in range(0, table.num_rows, _BLOCK):
                piece = table.slice(offset, _BLOCK)
                rows = slice(start, start + piece.num_rows)
                yield rows, [_as_array(piece.column(name)) for name in known]
                start = rows.stop

    def _known(self, name: str) -> str:
        if name not in self.columns:
            raise KeyError(f"name: no column {name!r}; there are {', '.join(self.columns)}")
        return name

    def correct(self, model: ModelName = "model") -> NDArray[np.bool_]:
        """Which samples the model gets right without an attack.

        Args:
            model: ``"model"`` or ``"reference"``.

        Returns:
            ``(N,)``.

        Raises:
            ValueError: ``model`` is neither, or there is no reference.
        """
        right: NDArray[np.bool_] = self.column(f"{self.prefix(model)}clean_prediction") == self.column(
            "label"
        )
        return right

    def survives(self, attack: str, model: ModelName = "model") -> NDArray[np.bool_]:
        """Which samples are right without the attack and still withstand it.

        Args:
            attack: one of :attr:`attacks`.
            model: ``"model"`` or ``"reference"``.

        Returns:
            ``(N,)``; its mean is the robust accuracy under ``attack``.

        Raises:
            KeyError: no such attack.
            ValueError: ``model`` is neither, or there is no reference.
        """
        fooled: NDArray[np.bool_] = self.column(f"{self.prefix(model)}{attack}.success")
        return self.correct(model) & ~fooled

    def robust(self, model: ModelName = "model") -> NDArray[np.bool_]:
        """Which samples are right without an attack and withstand every attack.

        Args:
            model: ``"model"`` or ``"reference"``.

        Returns:
            ``(N,)``; its mean is the robust accuracy.

        Raises:
            ValueError: ``model`` is neither, or there is no reference.
        """
        robust = self.correct(model)
        for attack in self.attacks:
            robust = robust & self.survives(attack, model)
        return robust

    def prefix(self, model: ModelName) -> str:
        """Prefix of the columns of a model: ``""`` or ``"reference."``.

        Args:
            model: ``"model"`` or ``"reference"``.

        Returns:
            The prefix.

        Raises:
            ValueError: ``model`` is neither, or there is no reference.
        """
        if model not in ("model", "reference"):
            raise ValueError(f"model: expected 'model' or 'reference', got {model!r}")
        if model == "reference" and not self.has_reference:
            raise ValueError("model: these records have no reference; evaluate with reference=...")
        return "" if model == "model" else "reference."

    def to_frame(self, *, logits: bool = True) -> pd.DataFrame:
        """The rows as a pandas DataFrame, one column per column.

        Args:
            logits: keep the logit columns (one array per cell). For the logits as one array use
                :meth:`column`.

        Returns:
            ``N`` rows.
        """
        require("pandas", extra="evaluate")
        names = [name for name in self.columns if logits or not is_logits(name)]
        table = pa.table({name: self._rows.column(name) for name in names})
        frame: pd.DataFrame = table.to_pandas()
        return frame

    def classwise(self) -> ClasswiseReport:
        """Which classes fail; see :func:`art_logits.analysis.classwise_report`."""
        # Analysis stands on records: imported here, not at load time, to keep imports pointing downward.
        from art_logits.analysis import classwise_report

        return classwise_report(self)

    def logits(self) -> LogitReport:
        """What the logits look like; see :func:`art_logits.analysis.logit_report`."""
        from art_logits.analysis import logit_report

        return logit_report(self)

    @property
    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = self.manifest.get("identity") or {}
        return identity


class RecordsWriter:
    """Writes a run part by part, so that an interruption costs at most the part in hand.

    Args:
        out: the run's folder; created where it does not exist.
        manifest: what is run. Only its ``identity`` is compared on resume; ``format`` and ``complete`` are
            set here.
        resume: continue a run that ``out`` holds already. Where it holds none, this starts a fresh one.

    Raises:
        FileExistsError: ``out`` is a file, holds other files, or holds a run and ``resume`` is false.
        BlockingIOError: another process is writing to ``out``.
        OSError: ``out`` cannot be written to.
        TypeError: ``manifest`` cannot be written as JSON.
        ValueError: the run in ``out`` has another identity or format; the message says in what it differs.
    """

    def __init__(self, out: Path, manifest: Mapping[str, Any], *, resume: bool) -> None:
        self.out = Path(out)
        self.manifest = _plain({**manifest, "format": FORMAT, "complete": False})
        continues = self._continues(resume)
        if continues:
            self._adopt(read_manifest(self.out))
        # Newest first: what a run without a finished part takes away again.
        self._made = [] if continues else [p for p in self._folders() if not p.exists()]
        self._fresh = not continues
        self._make_folder()
        self._lock = FolderLock(self.out)
        with ExitStack() as stack:
            stack.push(self)
            if not continues:
                self._write_manifest()
            self._clean()
            stack.pop_all()

    def __enter__(self) -> RecordsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close; a fresh run that failed before its first part leaves nothing behind."""
        if kind is not None and self._fresh and not self.finished_parts:
            (self.out / _MANIFEST).unlink(missing_ok=True)
            self.close()
            for folder in self._made:
                with suppress(OSError):  # somebody else's file lies there
                    folder.rmdir()
        self.close()

    def close(self) -> None:
        """Let other processes write to the folder; a second call does nothing."""
        self._lock.release()

    def _folders(self) -> list[Path]:
        """The folders of the run, and those around it, from the inside."""
        return [self.out / PICTURES, self.out / ROWS, self.out, *self.out.parents]

    @property
    def finished_parts(self) -> set[int]:
        """Numbers of the parts that are on disk."""
        return finished_parts(self.out)

    def write(self, part: int, table: pa.Table, thumbnails: pa.Table | None = None) -> None:
        """Write one part.

        Args:
            part: its number, from 0; rows are read back in the order of the parts.
            table: its rows, with the columns of :func:`records_schema`.
            thumbnails: pictures of some of them, of :func:`thumbnails_schema`.

        Raises:
            ValueError: ``part`` is negative or finished already, or ``table`` is not one of records.
        """
        if part < 0 or part in self.finished_parts:
            raise ValueError(f"part: expected a number from 0 that is not finished yet, got {part}")
        _check_table(table)
        pictures = _checked_thumbnails(thumbnails)
        # First: a part that is finished has its thumbnails.
        if len(pictures):
            (self.out / PICTURES).mkdir(exist_ok=True)
            write_part(pictures, part_path(self.out, part, PICTURES))
        write_part(table, part_path(self.out, part))

    def finish(self, passes: Mapping[str, Any]) -> Records:
        """Check that all parts are there, mark the run as complete, and read it.

        Of the thumbnails of all parts the best of each kind are kept.

        Args:
            passes: what it cost, ``{"model": {"forwards": int, "backwards": int}, "reference": {...}}``.

        Returns:
            The records of all parts, including those of an earlier, interrupted run.

        Raises:
            ValueError: parts are missing or corrupt.
        """
        _check_contiguous(self.out, self.finished_parts)
        records = Records.load(self.out, partial=True)
        _check_rows(self.out, records)
        self._prune()
        self.manifest = _plain({**self.manifest, "passes": dict(passes), "complete": True})
        self._write_manifest()
        self.close()
        records.manifest = dict(self.manifest)
        return records

    def _continues(self, resume: bool) -> bool:
        """Whether ``out`` holds a run to continue; refuses a folder that is neither that nor free."""
        if not self.out.exists():
            return False
        if not self.out.is_dir():
            raise FileExistsError(f"out: {self.out} is a file; choose a folder with --out")
        if (self.out / _MANIFEST).exists():
            if not resume:
                raise FileExistsError(
                    f"out: {self.out} holds another run; choose another --out, or continue it with --resume"
                )
            return True
        foreign = sorted(path.name for path in self.out.iterdir() if not _is_debris(path))
        if foreign:
            raise FileExistsError(
                f"out: {self.out} is not empty and holds no run ({shortened(', '.join(foreign))}); "
                "choose another --out"
            )
        return False

    def _adopt(self, stored: dict[str, Any]) -> None:
        """Continue the stored run: the same identity, and its own versions, command and start."""
        differences = _differences(stored.get("identity"), self.manifest.get("identity"))
        if differences:
            raise ValueError(
                f"out: {self.out} holds a run that differs: {'; '.join(differences)}. "
                "Choose another --out, or the options of that run"
            )
        changed = _differences(stored.get("versions"), self.manifest.get("versions"))
        if changed:
            _log.warning("resuming a run of other versions: %s", "; ".join(changed))
        self.manifest = stored

    def _prune(self) -> None:
        """Keep the best thumbnails of each kind; after an interruption this ends the same when repeated."""
        parts = sorted(finished_parts(self.out, PICTURES))
        tables = [read_part(part_path(self.out, part, PICTURES)) for part in parts]
        kept = best_thumbnails(pa.concat_tables([thumbnails_schema().empty_table(), *tables]))
        start = 0
        for part, table in zip(parts, tables, strict=True):
            rows = kept[(kept >= start) & (kept < start + len(table))] - start
            start += len(table)
            if not len(rows):
                part_path(self.out, part, PICTURES).unlink()
            elif len(rows) < len(table):
                write_part(table.take(rows), part_path(self.out, part, PICTURES))

    def _make_folder(self) -> None:
        """The folder of the records, or an error that names the option."""
        try:
            (self.out / ROWS).mkdir(parents=True, exist_ok=True)
            if not os.access(self.out, os.W_OK | os.X_OK):
                raise PermissionError(None, "Permission denied")
        except OSError as error:
            raise type(error)(
                f"out: {self.out} cannot be written to ({error.strerror}); choose another --out"
            ) from error

    def _clean(self) -> None:
        """Remove what an interrupted write left behind."""
        for folder in filter(Path.is_dir, (self.out, self.out / ROWS, self.out / PICTURES)):
            for path in folder.iterdir():
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _write_manifest(self) -> None:
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
        write_atomically(self.out / _MANIFEST, text.encode())


def _attack_names(columns: Sequence[str]) -> list[str]:
    """Attacks that the columns name; a name with a dot is refused by :func:`check_attack_name`."""
    suffix = ".prediction"
    named = (name.removesuffix(suffix) for name in columns if name.endswith(suffix))
    return [name for name in named if not name.startswith("reference.")]


def _check_table(table: pa.Table | PartTable) -> None:
    """Refuse a table that does not have the columns of :func:`records_schema`."""
    names = table.column_names
    logits = table.schema.field("clean_logits").type if "clean_logits" in names else None
    if logits is None or not pa.types.is_fixed_size_list(logits):
        raise ValueError("table: expected a column clean_logits of float32 vectors of one length, got none")
    expected = records_schema(
        _attack_names(names), logits.list_size, reference="reference.clean_logits" in names
    )
    for field in expected:
        if field.name in names or not field.name.endswith(_ROUNDED):
            _check_column(table, field)
    if not table.num_rows:
        raise ValueError("table: expected at least one row, got none")
    labels = table.column("label").to_numpy()
    if labels.min() < 0 or labels.max() >= logits.list_size:
        raise ValueError(
            f"table: expected labels in [0, {logits.list_size}), got {labels.min()} to {labels.max()}"
        )


def _check_column(table: pa.Table | PartTable, field: pa.Field) -> None:
    if table.column_names.count(field.name) != 1:
        count = table.column_names.count(field.name)
        raise ValueError(f"table: expected one column {field.name} of {_type_name(field.type)}, got {count}")
    kind = table.schema.field(field.name).type
    if _type_name(kind) != _type_name(field.type):
        raise ValueError(f"table: expected {field.name} to be {_type_name(field.type)}, got {kind}")
    if isinstance(table, PartTable) and is_logits(field.name):
        return  # on disk; checked when they are read
    nulls = table.column(field.name).null_count
    if nulls:
        raise ValueError(f"table: expected {field.name} without nulls, got {nulls}")


def _as_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """``(N,)``, or ``(N, C)`` of vectors; without a copy where there is one chunk in numpy's layout."""
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_list(values.type):
        flat: NDArray[Any] = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(values), values.type.list_size)
    plain: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return plain


def _best_of(thumbnails: Iterable[pa.Table]) -> pa.Table:
    """The best thumbnails of each kind of several parts."""
    pictures = pa.concat_tables([thumbnails_schema().empty_table(), *thumbnails])
    return pictures.take(best_thumbnails(pictures))


def _type_name(kind: pa.DataType) -> str:
    """A type as text, without the names that writers of Parquet give to a list's elements."""
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.value_type}[{kind.list_size}]"
    return str(kind)


def _checked_thumbnails(table: pa.Table | None) -> pa.Table:
    """The thumbnails, of their schema; an empty table for none."""
    schema = thumbnails_schema()
    if table is None:
        return schema.empty_table()
    if table.schema != schema:
        raise ValueError(
            f"thumbnails: expected the columns {', '.join(schema.names)} of thumbnails_schema(), "
            f"got {', '.join(f'{field.name} ({field.type})' for field in table.schema)}"
        )
    return table


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a run says of itself.

    Args:
        folder: the run's folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its manifest is no JSON, or of another format.
    """
    path = folder / _MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: {path} is missing; give the --out of an evaluation")
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is not JSON ({error}); run the evaluation again with another --out"
        ) from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT}, got {version!r}; read it with the art-logits that wrote it"
        )
    return dict(manifest)


def _check_contiguous(folder: Path, parts: set[int]) -> None:
    missing = sorted(set(range(max(parts, default=0) + 1)) - parts)
    if missing:
        raise ValueError(
            f"{folder / ROWS}: parts are missing: {shortened(', '.join(map(str, missing)))}; "
            "run the evaluation again with --resume"
        )


def _check_rows(folder: Path, records: Records) -> None:
    expected = _dig(records.manifest, "identity", "data", "n")
    if expected is not None and len(records) != expected:
        raise ValueError(
            f"{folder / ROWS}: parts are missing: expected {expected} rows (identity.data.n), "
            f"got {len(records)}; run the evaluation again with --resume"
        )


def _is_debris(path: Path) -> bool:
    """Whether ``path`` is what a run leaves that was interrupted before its manifest was there."""
    if path.name == ROWS and path.is_dir():
        return all(_TEMPORARY.fullmatch(child.name) for child in path.iterdir())
    return path.name == LOCK or bool(_TEMPORARY.fullmatch(path.name))


def _plain(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest as JSON will give it back, so that what is compared is what was stored."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(manifest, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"manifest: expected values that JSON can hold, got one that it cannot: {error}"
        ) from error
    return plain


def _differences(stored: object, now: object, path: str = "") -> list[str]:
    """Dotted paths of what differs between two JSON values, with both values."""
    if isinstance(stored, dict) and isinstance(now, dict):
        keys = list(stored) + [key for key in now if key not in stored]
        return [
            difference
            for key in keys
            for difference in _differences(
                stored.get(key, _ABSENT), now.get(key, _ABSENT), f"{path}.{key}" if path else str(key)
            )
        ]
    if stored == now and isinstance(stored, bool) == isinstance(now, bool):
        return []
    return [f"{path or 'identity'}: {shortened(str(stored))} there, {shortened(str(now))} now"]


class _Absent:
    """Stands for a key that one of two manifests lacks; prints as such."""

    def __str__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _dig(mapping: Mapping[str, Any], *keys: str) -> Any:
    """``mapping[key1][key2]…``, or None where a key is missing or its parent is null."""
    value: Any = mapping
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
