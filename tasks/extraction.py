"""The verb `extract`, with which others begin: rows of a data set -> their features in a store."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from extractors import load_extractor
from extractors.base import Extractor
from extractors.distributed import DEFAULT_WORKERS, RayEngine, import_ray
from extractors.errors import InputError
from extractors.extract import Extraction, extract
from extractors.names import parse_name
from extractors.store import StoredRows
from tasks.config import ExtractConfig
from tasks.console import Reporter
from tasks.data.arrays import check_width
from tasks.data.load import Dataset, load_task
from tasks.devices import require_device
from tasks.records import ExtractRecord
from tasks.standardise import min_spread_of

MOST_SKIPPED = 100  # rows left out that a record lists
_FOLDERS = re.compile(r"(?<![\w.:])/(?:[^/\n]+/)+(?=[^/\s])")
DEFAULT_BACKBONES = {"text": "minilm", "image": "timm:mobilenetv3_large_100.ra_in1k"}


def plain_reason(name: str, reason: str) -> str:
    """Why a row was left out, without its own name and without folders: reports travel.

    >>> plain_reason("ant/1.jpg", "/home/me/set/ant/1.jpg: the image does not decode")
    'the image does not decode'
    >>> plain_reason("7", "there is no image file /home/me/1.jpg")
    'there is no image file 1.jpg'
    """
    before, there, said = reason.partition(f"{name}: ")
    return said if there and ": " not in before else _FOLDERS.sub("", reason)


@dataclass(frozen=True)
class Extracted:
    """A data set, its backbone, and the store with its features."""

    dataset: Dataset
    extractor: Extractor
    extraction: Extraction

    def rows(self, split: str, *, streamed: bool = False) -> StoredRows:
        """The stored rows of a split, without those that could not be encoded.

        streamed: their features stay on disk until they are read (`FeatureStore.read`).
        """
        left_out = {row.id for row in self.extraction.skipped if row.split == split}
        ids = [i for i in self.dataset.splits[split].ids if i not in left_out]
        if not ids:
            raise InputError(f"no row of the {split} split of {self.dataset.name} can be encoded")
        return self.extraction.store.read(split, ids, streamed=streamed)

    def inputs(self, split: str) -> dict[str, Any]:
        """Raw rows of a split by their ids."""
        of = self.dataset.splits[split]
        return dict(zip(of.ids, of.inputs, strict=True))

    def raw(self, split: str, rows: StoredRows) -> list[Any]:
        """The raw rows that these stored rows of a split come from."""
        inputs = self.inputs(split)
        return [inputs[row] for row in rows.ids]

    def digests(self, rows: Mapping[str, StoredRows]) -> dict[str, list[bytes]]:
        """Of the raw rows that these stored rows come from."""
        by_id = {
            name: dict(zip(split.ids, self.dataset.digests[name], strict=True))
            for name, split in self.dataset.splits.items()
        }
        return {name: [by_id[name][row] for row in part.ids] for name, part in rows.items()}

    @property
    def min_spread(self) -> float:
        """Of the columns that are used, as a fraction of the median column's."""
        return min_spread_of(self.dataset.modality)

    @property
    def truncated_fraction(self) -> float | None:
        """Share of the texts that the backbone reads in part; None for other rows."""
        return self.extraction.truncated_fraction if self.extractor.modality == "text" else None

    def feature_figures(self) -> dict[str, Any]:
        """Fields of both records: which features were taken, and what was measured on them."""
        return {
            "feature_options": self.extractor.fingerprint().get("options", {}),
            "tokens": self.extraction.tokens,
            "autocast_error": self.extraction.error,
        }

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Id and reason of every row that could not be used or encoded."""
        read = [(row.id, row.reason) for row in self.extraction.skipped]
        return [(name, plain_reason(name, said)) for name, said in (*self.dataset.skipped, *read)]

    def skipped_figures(self) -> dict[str, Any]:
        """Fields of both records: how many rows were left out, and which."""
        found = self.skipped
        return {"skipped_rows": len(found), "skipped": found[:MOST_SKIPPED]}


def run_extract(
    config: ExtractConfig, *, reporter: Reporter, extractor: Extractor | None = None
) -> ExtractRecord:
    """Fills the feature store of a data set and a backbone.

    Args:
        config: which data and which backbone.
        reporter: hears of progress.
        extractor: the backbone itself, in place of the one that `config` names: one made in Python
            (`extractors.module.ModuleExtractor`).

    Raises:
        InputError: data, backbone or rows that cannot be used.
        MachineError: disk, memory or network.
    """
    found = extract_features(config, reporter, extractor)
    return ExtractRecord(
        task=found.dataset.name,
        backbone=found.extractor.name,
        modality=found.dataset.modality,
        store=str(found.extraction.store.path),
        rows=found.extraction.rows,
        dim=found.extraction.dim,
        truncated_fraction=found.truncated_fraction,
        seconds=round(found.extraction.seconds, 3),
        resumed_rows=found.extraction.resumed_rows,
        **found.skipped_figures(),
        notes=found.dataset.notes,
        **found.feature_figures(),
        store_dtype=config.stored_as,
        storage_error=found.extraction.store.manifest.storage_error,
    )


def _default_backbone(dataset: Dataset) -> str:
    if dataset.modality == "features":
        return f"precomputed:{check_width(dataset.splits['train'].inputs, dataset.name)}"
    return DEFAULT_BACKBONES[dataset.modality]


def extract_features(
    config: ExtractConfig,
    reporter: Reporter,
    given: Extractor | None = None,
    *,
    may_extract: bool = True,
) -> Extracted:
    """Loads the data and fills their store, or refuses to; what other verbs begin with."""
    if config.backbone not in (None, "precomputed") and given is None:
        parse_name(config.backbone)  # a misspelt name is said before the data are read
    if given is None and may_extract and config.engine == "local":
        require_device(config.device)  # a missing one too
    dataset = load_task(
        config.data,
        data_root=config.data_root,
        text_column=config.text_column,
        image_column=config.image_column,
        label_column=config.label_column,
        features_column=config.features_column,
        classes=config.classes,
        train_rows=config.train_rows,
        test_rows=config.test_rows,
        seed=config.seed,
        on_bad_row=config.on_bad_row,
        several_labels=config.several_labels,
    )
    for note in dataset.notes:
        reporter.note(note)
    default = _default_backbone(dataset)
    backbone = config.backbone or default
    if backbone == "precomputed" and dataset.modality == "features":
        backbone = default
    options = config.feature_options()
    extractor = given or load_extractor(backbone, device=config.device, options=options)
    if extractor.modality != dataset.modality:
        raise InputError(
            f"{dataset.name} holds {dataset.modality} rows, but {extractor.name} reads "
            f"{extractor.modality}: name a backbone for {dataset.modality} rows, for example "
            f"--backbone {default}"
        )
    extraction = _with_progress(config, dataset, extractor, reporter, may_extract)
    if extraction.rebuilt:
        reporter.note(
            "the manifest of the store was lost or damaged; it was rebuilt from "
            f"{extraction.rebuilt} shards that are proven to be whole"
        )
    if extraction.skipped:
        first = extraction.skipped[0]
        reporter.note(
            f"{len(extraction.skipped)} rows could not be encoded and were left out; "
            f"the first: {first.id} ({first.reason})"
        )
    if config.stored_as != "float32":
        lost = extraction.store.manifest.storage_error
        reporter.note(
            f"features are stored as {config.stored_as}: they differ from float32 by "
            f"{lost['mean']:.1e} of a row's norm in the mean, {lost['max']:.1e} at most"
        )
    return Extracted(dataset, extractor, extraction)


def _with_progress(
    config: ExtractConfig,
    dataset: Dataset,
    extractor: Extractor,
    reporter: Reporter,
    may_extract: bool,
) -> Extraction:
    """`extract`, with a stage that begins when it is known how much there is to do."""
    with ExitStack() as stack:
        advance: list[Any] = []

        def on_start(total: int, resumed: int) -> None:
            if resumed < total and not may_extract:
                raise InputError(
                    f"{total - resumed} of {total} rows have no features yet: run the same command "
                    "with `extract` in place of `fit --dry-run` first"
                )
            if resumed < total:
                stage = stack.enter_context(reporter.stage("extract", total, done=resumed))
                advance.append(stage.advance)

        def progress(n: int) -> None:
            if advance:
                advance[0](n)

        return extract(
            dataset.splits,
            extractor,
            task=dataset.name,
            classes=dataset.classes,
            data_fingerprint=dataset.fingerprint,
            cache_dir=config.cache_dir,
            on_bad_row=config.on_bad_row,
            dtype=config.stored_as,
            progress=progress,
            on_start=on_start,
            engine=_engine(config, extractor),
        )


def _engine(config: ExtractConfig, extractor: Extractor) -> RayEngine | None:
    if config.engine == "local":
        return None
    import_ray()  # said before the store is opened
    return RayEngine(
        partial(
            load_extractor,
            extractor.name,
            device=config.device,
            options=config.feature_options(),
        ),
        workers=config.workers or DEFAULT_WORKERS,
        gpus=1 if (config.device or "").startswith("cuda") else 0,
        address=os.environ.get("RAY_ADDRESS"),
    )
