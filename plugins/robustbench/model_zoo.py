"""RobustBench's model zoo: a table of it, its models, and your own models in it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from art_logits import _checks
from art_logits._extras import require
from art_logits.models import is_html, load_checkpoint, read_checkpoint

from ._host import robustbench

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["build_model", "load_model", "register", "unregister", "zoo"]

logger = logging.getLogger(__name__)

_DRIVE = "https://drive.google.com/uc?id="


class _Entry(NamedTuple):
    """A place in the zoo."""

    dataset: str
    threat_model: str
    name: str

    def models(self) -> dict[str, dict[str, Any]]:
        """RobustBench's own dictionary of the models of this data set and threat model."""
        enums = robustbench("model_zoo.enums")
        zoo_of = robustbench("model_zoo.models").model_dicts[enums.BenchmarkDataset(self.dataset)]
        found: dict[str, dict[str, Any]] = zoo_of.setdefault(enums.ThreatModel(self.threat_model), {})
        return found

    def files(self, model_dir: str | Path) -> list[Path]:
        """Where RobustBench looks for the weights: one file, or several for an ensemble."""
        ids = self.models()[self.name]["gdrive_id"]
        path = Path(model_dir) / self.dataset / self.threat_model / f"{self.name}.pt"
        return (
            [path.with_name(f"{path.name}_m{i}.pt") for i in range(len(ids))]
            if isinstance(ids, list)
            else [path]
        )

    def timm_name(self) -> str:
        """The name under which RobustBench looks for the model in timm first."""
        name = self.name.lower().replace("-", "_")
        return f"{name}_{self.dataset.lower()}_{self.threat_model.lower()}"

    def __str__(self) -> str:
        return f"{self.dataset}/{self.threat_model}/{self.name}"


class _Custom(NamedTuple):
    """A model that :func:`register` put into the zoo."""

    factory: Callable[[], nn.Module]
    checkpoint: Path | None
    pretrained: bool


_CUSTOM: dict[_Entry, _Custom] = {}


def load_model(
    model_name: str,
    model_dir: str | Path = "./models",
    dataset: Any = "cifar10",
    threat_model: Any = "Linf",
) -> nn.Module:
    """Load a model of the zoo, in eval mode, on the CPU; the arguments are those of RobustBench.

    Where ``model_dir/<dataset>/<threat model>/<model_name>.pt`` is there, the network is not touched. Where
    it is not, RobustBench's own code downloads it. Either way the file is read as data before RobustBench
    unpickles it. (Models that RobustBench takes from timm or torchvision have no such file: they come from
    the caches of these.)

    Args:
        model_name: its name in the zoo, see :func:`zoo`.
        model_dir: folder of the weights.
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.
        threat_model: ``"Linf"``, ``"L2"`` or ``"corruptions"``.

    Returns:
        The model: images ``(N, 3, H, W)`` in [0, 1] to logits ``(N, C)``.

    Raises:
        ValueError: no such model (naming the nearest), or weights that are an HTML page, truncated, hold
            pickled code or do not fit the model.
        FileNotFoundError: the weights of a registered model are missing.
        OSError: the download failed.
    """
    entry = _entry(model_name, dataset, threat_model)
    if entry in _CUSTOM:
        return _load_custom(entry, model_dir)
    if _has_files(entry):
        for path, gdrive_id in zip(entry.files(model_dir), _gdrive_ids(entry), strict=True):
            _provide(entry, path, gdrive_id)
    try:
        model: nn.Module = robustbench("utils").load_model(
            entry.name, model_dir, dataset=entry.dataset, threat_model=entry.threat_model
        )
    except (RuntimeError, LookupError, TypeError, AttributeError) as error:
        files = ", ".join(map(str, entry.files(model_dir)))
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise ValueError(
            f"checkpoint {files} does not fit {entry}: {type(error).__name__}: {reason[:400]}"
        ) from error
    return model.eval()


def build_model(model_name: str, dataset: Any = "cifar10", threat_model: Any = "Linf") -> nn.Module:
    """The architecture of a model of the zoo, for weights of one's own.

    Args:
        model_name: its name in the zoo.
        dataset: as for :func:`load_model`.
        threat_model: as for :func:`load_model`.

    Returns:
        The network without the zoo's weights, whose keys are those that a checkpoint must have.

    Raises:
        ValueError: no such model (naming the nearest), or an ensemble, which has no single checkpoint.
    """
    entry = _entry(model_name, dataset, threat_model)
    if len(_gdrive_ids(entry)) > 1:
        raise ValueError(f"{entry} is an ensemble: it has no single checkpoint, put its files into model_dir")
    custom = _CUSTOM.get(entry)
    model: nn.Module = custom.factory() if custom is not None else entry.models()[entry.name]["model"]()
    return model


def zoo(model_dir: str | Path = "./models") -> pd.DataFrame:
    """All models of the zoo, those that :func:`register` added included.

    Args:
        model_dir: folder of the weights.

    Returns:
        Columns ``name``, ``architecture``, ``dataset``, ``threat_model``; ``clean_accuracy`` and
        ``robust_accuracy`` (AutoAttack's; on corrupted images for corruptions) as RobustBench published
        them, and ``best_known``, the lowest robust accuracy that it knows, all as fractions and NaN where it
        published none; ``present``, whether the weights are in ``model_dir``. The figures are those of
        RobustBench's repository in March 2025: its package does not have them.
    """
    pandas = require("pandas", extra="robustbench")
    published = pandas.read_csv(resources.files(__package__) / "published.csv")
    key = ["dataset", "threat_model", "name"]
    known = published.set_index(key).to_dict("index")
    rows = [
        {
            **entry._asdict(),
            "architecture": known.get(entry, {}).get("architecture") or _architecture(entry),
            **{
                column: known.get(entry, {}).get(column, float("nan"))
                for column in ("clean_accuracy", "robust_accuracy", "best_known")
            },
            "present": _is_present(entry, model_dir),
        }
        for entry in _entries()
    ]
    order = ["name", "architecture", *key[:2], "clean_accuracy", "robust_accuracy", "best_known", "present"]
    frame: pd.DataFrame = pandas.DataFrame(rows, columns=order)
    return frame


def register(
    name: str,
    factory: Callable[[], nn.Module],
    *,
    dataset: Any = "cifar10",
    threat_model: Any = "Linf",
    checkpoint: str | Path | None = None,
    pretrained: bool = False,
    preprocessing: str | None = None,
) -> None:
    """Put a model of your own into RobustBench's zoo, for :func:`load_model` and everything else here.

    Its weights are those of ``checkpoint``, or of the zoo's path ``model_dir/<dataset>/<threat
    model>/<name>.pt``, or with ``pretrained`` those that the factory gives it.

    Args:
        name: in the zoo; a new one.
        factory: called without arguments, returns the model: images in [0, 1] to logits.
        dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``.
        threat_model: ``"Linf"``, ``"L2"`` or ``"corruptions"``.
        checkpoint: its weights, as safetensors or as a state dict.
        pretrained: the factory returns the model with its weights.
        preprocessing: RobustBench's name for how ImageNet's images are prepared, such as
            ``"Res256Crop224"``.

    Raises:
        ValueError: the name is taken or no file name, or both sources of weights are given.
        TypeError: the factory is not callable.
        FileNotFoundError: there is no such checkpoint.
    """
    entry = _place(dataset, threat_model, name)
    if not name or name != Path(name).name:
        raise ValueError(f"name must be one that can name a file, got {name!r}")
    if name in entry.models():
        raise ValueError(f"name: {entry} is in the zoo already; choose another, or unregister your own")
    if not callable(factory):
        raise TypeError(f"factory must be callable without arguments, got {type(factory).__name__}")
    if checkpoint is not None and pretrained:
        raise ValueError("checkpoint must not be given with pretrained=True: the factory brings the weights")
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise FileNotFoundError(f"checkpoint: there is no file {str(checkpoint)!r}")
    # RobustBench asks for some id, and downloads nothing where the file is there.
    entry.models()[name] = {"model": factory, "gdrive_id": "custom", "preprocessing": preprocessing}
    path = None if checkpoint is None else Path(checkpoint).resolve()
    _CUSTOM[entry] = _Custom(factory, path, pretrained)


def unregister(name: str, *, dataset: Any = "cifar10", threat_model: Any = "Linf") -> None:
    """Take a model that :func:`register` added out of the zoo again.

    Args:
        name: its name.
        dataset: as it was registered.
        threat_model: as it was registered.

    Raises:
        ValueError: no such model was registered.
    """
    entry = _place(dataset, threat_model, name)
    if entry not in _CUSTOM:
        names = [str(each) for each in _CUSTOM]
        raise ValueError(f"name: {entry} was not registered{_checks.nearest(str(entry), names)}")
    del _CUSTOM[entry]
    del entry.models()[name]


# ----------------------------------------------------------------------------------------------------------
# Places in the zoo


def dataset_name(value: Any) -> str:
    """A data set of RobustBench by its name, given as text or as RobustBench's enumeration.

    Raises:
        ValueError: there is none of that name.
    """
    known = [each.value for each in robustbench("model_zoo.enums").BenchmarkDataset]
    return _checks.choice("dataset", getattr(value, "value", value), known)


def threat_model_name(value: Any) -> str:
    """A threat model of RobustBench by its name, given as text or as RobustBench's enumeration.

    Raises:
        ValueError: there is none of that name.
    """
    known = [each.value for each in robustbench("model_zoo.enums").ThreatModel]
    return _checks.choice("threat_model", getattr(value, "value", value), known)


def _place(dataset: Any, threat_model: Any, name: str) -> _Entry:
    # Both kinds of corruptions share their models.
    return _Entry(dataset_name(dataset), threat_model_name(threat_model).replace("_3d", ""), name)


def _entry(name: str, dataset: Any, threat_model: Any) -> _Entry:
    entry = _place(dataset, threat_model, name)
    names = entry.models()
    if name not in names:
        raise ValueError(
            f"model_name must be a model of the zoo for {entry.dataset}/{entry.threat_model}, "
            f"got {name!r}{_checks.nearest(name, names)}; zoo() lists all of them"
        )
    return entry


def _entries() -> list[_Entry]:
    zoo_dict = robustbench("model_zoo.models").model_dicts
    return [
        _Entry(dataset.value, threat_model.value, name)
        for dataset, threat_models in zoo_dict.items()
        for threat_model, models in threat_models.items()
        for name in models
    ]


def _architecture(entry: _Entry) -> str:
    """What an entry builds, as far as it can be told without building it."""
    factory = entry.models()[entry.name]["model"]
    name = getattr(factory, "__name__", type(factory).__name__)
    if name != "<lambda>":
        return str(name)
    names = factory.__code__.co_names
    return str(names[0]) if names else name


def _gdrive_ids(entry: _Entry) -> list[str]:
    ids = entry.models()[entry.name]["gdrive_id"]
    return list(ids) if isinstance(ids, list) else [ids]


def _has_files(entry: _Entry) -> bool:
    """Whether RobustBench reads the model from files of the zoo, not from timm's or torchvision's caches."""
    timm = require("timm", extra="robustbench")
    if timm.is_model(entry.timm_name()) or _gdrive_ids(entry) == [None]:
        return False
    return not (entry.dataset == "imagenet" and "Standard" in entry.name)


def _is_present(entry: _Entry, model_dir: str | Path) -> bool:
    custom = _CUSTOM.get(entry)
    if custom is not None and (custom.pretrained or custom.checkpoint is not None):
        return True
    return all(path.is_file() for path in entry.files(model_dir))


# ----------------------------------------------------------------------------------------------------------
# Weights


def _load_custom(entry: _Entry, model_dir: str | Path) -> nn.Module:
    custom = _CUSTOM[entry]
    path = custom.checkpoint or entry.files(model_dir)[0]
    if not custom.pretrained and not path.is_file():
        raise FileNotFoundError(
            f"model_dir: there is no {str(path)!r} with the weights of the registered model {entry}; put "
            "them there, or register it with checkpoint=FILE, or with pretrained=True"
        )
    model = custom.factory()
    if not isinstance(model, nn.Module):
        raise TypeError(f"factory of {entry} must return a torch.nn.Module, got {type(model).__name__}")
    if not custom.pretrained:
        load_checkpoint(model, path)
    return model.eval()


def _provide(entry: _Entry, path: Path, gdrive_id: str) -> None:
    """See that a file of weights is there and is one; RobustBench unpickles whatever it finds."""
    if not path.is_file():
        _download(entry, path, gdrive_id)
    elif is_html(path):
        aside = path.with_name(f"{path.name}.html")
        path.replace(aside)
        raise ValueError(
            f"checkpoint {str(path)!r} is an HTML page, not weights: an earlier download of {entry} was "
            f"answered with a web page. It now lies at {str(aside)!r}; {_by_hand(path, gdrive_id)}"
        )
    else:
        read_checkpoint(path)


def _download(entry: _Entry, path: Path, gdrive_id: str) -> None:
    """Download weights by RobustBench's own code; a file that is none never gets their name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.download")
    logger.info("downloading %s to %s", entry, path)
    try:
        robustbench("utils").download_gdrive_new(gdrive_id, partial)
        if not partial.is_file():
            raise OSError("no file came")
        read_checkpoint(partial)
        partial.replace(path)
    except ValueError as error:
        what = "an HTML page, not weights" if is_html(partial) else f"no checkpoint ({error})"
        raise ValueError(
            f"checkpoint of {entry}: the download brought {what}, and was removed. "
            f"{_by_hand(path, gdrive_id)}"
        ) from error
    except Exception as error:  # the downloader has errors of its own, and those of what it is built on
        raise OSError(
            f"checkpoint of {entry} could not be downloaded ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}). "
            f"{_by_hand(path, gdrive_id)}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _by_hand(path: Path, gdrive_id: str) -> str:
    return f"Try again later, or download {_DRIVE}{gdrive_id} in a browser and save it as {str(path)!r}"
