"""Data sets of the Hugging Face Hub: `hub:owner/name[:config]`."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extractors.errors import InputError, MachineError
from tasks.data.columns import ColumnChoice, Columns, find_columns
from tasks.data.files import SPLIT_NAMES, read_inputs, use_val_as_test
from tasks.data.raw import WHOLE, RawData, RawSplit

if TYPE_CHECKING:
    import datasets

_NAME = re.compile(r"[\w.-]+/[\w.-]+\Z")
_PROBE_SECONDS = 5.0


def parse_hub_name(data: str) -> tuple[str, str | None]:
    """Split `hub:owner/name[:config]` into repository and configuration.

    >>> parse_hub_name("hub:nyu-mll/glue:sst2")
    ('nyu-mll/glue', 'sst2')
    """
    repository, _, config = data.removeprefix("hub:").partition(":")
    if not _NAME.match(repository):
        raise InputError(
            f"'{data}' is not a Hub data set; write hub:owner/name or hub:owner/name:config"
        )
    return repository, config or None


def read_hub(
    name: str,
    repository: str,
    config: str | None,
    choice: ColumnChoice,
    instead: str,
    splits_as: Mapping[str, str] | None = None,
) -> RawData:
    """Download a data set, or take it from the cache of `datasets`, and read its splits.

    `name` is what the data set is called here; `instead` ends the message when there is no network
    and nothing cached (what else the user can do). Splits that are none of train, validation, test
    (imdb has one called "unsupervised") are left out; `splits_as` gives those to take and what they
    are here, for data sets whose test labels are kept secret.

    Raises InputError for an unknown repository, configuration or column, and MachineError when
    the Hub cannot be reached and nothing is cached.
    """
    splits, notes = _load(repository, config, instead)
    if splits_as is not None:
        splits = {to: splits[name] for name, to in splits_as.items() if name in splits}
    found = [split for split in splits if split in SPLIT_NAMES]
    if not found and len(splits) == 1:
        found = list(splits)
    if not found:
        raise InputError(f"{repository} has no train split, only {', '.join(splits)}")
    columns = find_columns(splits[found[0]].column_names, choice, repository)
    assert columns.label is not None
    rows = {
        split if len(found) > 1 else WHOLE: _rows(splits[split], split, columns) for split in found
    }
    feature = splits[found[0]].features[columns.label]
    # Of a list of labels, the names are those of its items.
    class_names = getattr(getattr(feature, "feature", feature), "names", None)
    return use_val_as_test(RawData(name, columns.modality, rows, class_names, notes))


def _rows(split: datasets.Dataset, name: str, columns: Columns) -> RawSplit:
    import datasets

    for column in (*columns.inputs, columns.label):
        if column not in split.column_names:
            raise InputError(f"the split {name} has no column '{column}'")
    if columns.modality == "image":
        # Encoded bytes, as they are stored: decoding is the extractor's work.
        split = split.cast_column(columns.input, datasets.Image(decode=False))
    inputs = columns.read_input(split.__getitem__)
    labels: list[Any] = list(split[columns.label or ""])
    ids = [f"{name}/{i:06d}" for i in range(len(inputs))]
    return RawSplit(ids, read_inputs(None, columns, inputs), labels, ids.__getitem__)


def _load(
    repository: str, config: str | None, instead: str
) -> tuple[dict[str, datasets.Dataset], tuple[str, ...]]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    reachable = hub_reachable()
    notes = () if reachable else (f"the Hub cannot be reached; {repository} is the cached copy",)
    try:
        with _offline(not reachable):
            loaded = datasets.load_dataset(repository, config)
    except DatasetNotFoundError as error:
        raise InputError(
            f"the Hub has no data set '{repository}' that you may read; "
            "check the name, or log in with `hf auth login`"
        ) from error
    except ConnectionError as error:
        raise MachineError(
            f"no network and nothing cached: {repository} cannot be fetched from the Hub; {instead}"
        ) from error
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        # An unknown configuration, or a data set that is a loading script.
        reason = " ".join(str(error).split())
        raise InputError(f"cannot load {repository} from the Hub: {reason}") from error
    return {str(split): rows for split, rows in loaded.items()}, notes


def hub_reachable() -> bool:
    """Whether the Hub answers at all, within seconds; False in offline mode.

    Without this, a machine with no network waits half a minute for five announced retries.
    """
    from datasets import config

    if config.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(config.HF_ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # it answered
    except (OSError, ValueError):
        return False


def is_cached(repository: str) -> bool:
    """Whether `datasets` has kept this data set, found without importing it."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()
    return (cache / repository.replace("/", "___")).is_dir()


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    """Have `datasets` look only into its cache; it offers this as a module constant alone."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
