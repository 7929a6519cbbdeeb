"""The main job: rows -> features in a store -> certified head -> metrics -> artefact and report.

Validation rows choose (beta, temperature, the probe's C); test rows are compared with the others to
find duplicates, and measured once, at the end.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors import load_extractor
from extractors.base import Extractor
from extractors.distributed import DEFAULT_WORKERS, RayEngine, import_ray
from extractors.errors import InputError
from extractors.extract import Extraction, extract
from extractors.manifest import installed_versions
from extractors.names import parse_name
from extractors.store import StoredRows, default_cache_dir
from tasks.arrays import check_width
from tasks.config import ExtractConfig, FitConfig, as_command
from tasks.console import Reporter
from tasks.data import Dataset, load_task
from tasks.records import ExtractRecord, FitRecord

if TYPE_CHECKING:
    from convex_heads import ConvexHeadClassifier
    from convex_heads.solution import Record

_SOLVER_PACKAGES = ("convex-heads", "jax", "jaxlib", "scikit-learn")
DEFAULT_BACKBONES = {"text": "minilm", "image": "timm:mobilenetv3_large_100.ra_in1k"}


@dataclass(frozen=True)
class Extracted:
    """A data set, its backbone, and the store with its features."""

    dataset: Dataset
    extractor: Extractor
    extraction: Extraction

    def rows(self, split: str) -> StoredRows:
        """The stored rows of a split, without those that could not be encoded."""
        left_out = {row.id for row in self.extraction.skipped if row.split == split}
        ids = [i for i in self.dataset.splits[split].ids if i not in left_out]
        if not ids:
            raise InputError(f"no row of the {split} split of {self.dataset.name} can be encoded")
        return self.extraction.store.read(split, ids)

    def digests(self, rows: Mapping[str, StoredRows]) -> dict[str, list[bytes]]:
        """Of the raw rows that these stored rows come from."""
        by_id = {
            name: dict(zip(split.ids, self.dataset.digests[name], strict=True))
            for name, split in self.dataset.splits.items()
        }
        return {name: [by_id[name][row] for row in part.ids] for name, part in rows.items()}

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
    def skipped_rows(self) -> int:
        """Rows that could not be used or encoded."""
        return len(self.dataset.skipped) + len(self.extraction.skipped)


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
        skipped_rows=found.skipped_rows,
        notes=found.dataset.notes,
        **found.feature_figures(),
        store_dtype=config.store_dtype,
        storage_error=found.extraction.store.manifest.storage_error,
    )


def run_fit(
    config: FitConfig, *, reporter: Reporter, extractor: Extractor | None = None
) -> FitRecord:
    """Runs the main job and writes the artefact.

    Args:
        config: what to fit on what.
        reporter: hears of progress.
        extractor: as in `run_extract`.

    Raises:
        InputError: options, data, backbone or rows that cannot be used.
        MachineError: disk, memory or network.
    """
    from tasks.artefact import Head, check_destination, write_artefact
    from tasks.baselines import SETTINGS, linear_probe
    from tasks.calibration import fit_temperature
    from tasks.compile_clock import compile_clock
    from tasks.leaks import check_leaks
    from tasks.metrics import evaluate
    from tasks.mistakes import write_samples
    from tasks.report import write_model_card, write_report

    out = config.out
    if out is not None:
        check_destination(out)
    found = extract_features(config, reporter, extractor)
    dataset = found.dataset
    rows = {split: found.rows(split) for split in ("train", "validation", "test")}
    began = time.perf_counter()
    leaks = None
    if config.leak_check:
        leaks, rows = check_leaks(
            rows,
            found.digests(rows),
            drop=config.drop_leaks,
            inputs={
                name: dict(zip(s.ids, s.inputs, strict=True)) for name, s in dataset.splits.items()
            },
            reporter=reporter,
        )
    leak_seconds = time.perf_counter() - began
    train, validation, test = rows["train"], rows["validation"], rows["test"]
    if out is None:
        cache = config.cache_dir or default_cache_dir()
        out = cache / "artefacts" / f"{Path(dataset.name).stem}-{_slug(found.extractor)}"
        check_destination(out)

    began = time.perf_counter()
    with compile_clock() as compiling:
        classifier = _fit_head(config, dataset, train, validation, reporter)
    fit_seconds = time.perf_counter() - began
    network = classifier.network_
    temperature = None
    if config.calibrate == "temperature":
        temperature = fit_temperature(
            network.scores(validation.features), network.loss, validation.labels
        )
    head = Head(network, dataset.classes, 1.0 if temperature is None else temperature)

    with reporter.stage("linear probe", total=SETTINGS) as stage:
        probe = linear_probe(
            train.features,
            train.labels,
            validation.features,
            validation.labels,
            n_classes=len(dataset.classes),
            seed=config.seed,
            progress=stage.advance,
        )

    head_probabilities = head.predict_proba(test.features)
    probe_probabilities = probe.predict_proba(test.features)
    measured = evaluate(head_probabilities, test.labels)
    probe_measured = evaluate(probe_probabilities, test.labels)
    certificate = classifier.certificate_
    notes = dataset.notes
    if certificate.relative_gap > classifier.tolerance:
        notes = (*notes, f"{classifier.status_.value} (gap {certificate.relative_gap:.1e})")
        reporter.note(notes[-1])
    record = FitRecord(
        task=dataset.name,
        backbone=found.extractor.name,
        modality=dataset.modality,
        n_train=len(train.ids),
        n_validation=len(validation.ids),
        n_test=len(test.ids),
        dim=found.extraction.dim,
        n_classes=len(dataset.classes),
        activation=config.activation,
        loss=network.loss,
        solver=classifier.solver_,
        n_gates=len(classifier.gates_),
        beta=certificate.beta,
        beta_max=certificate.beta_max,
        primal=certificate.primal,
        dual=certificate.dual,
        relative_gap=certificate.relative_gap,
        cone_violation=certificate.cone_violation,
        pattern_violation=None
        if np.isnan(certificate.pattern_violation)
        else certificate.pattern_violation,
        penalty=config.penalty,
        passes=int(np.ceil(classifier.passes_)),
        validation_accuracy=classifier.score(validation.features, validation.labels),
        test_accuracy=measured.accuracy,
        test_accuracy_interval=measured.accuracy_interval,
        test_macro_f1=measured.macro_f1,
        test_nll=measured.nll,
        test_ece=measured.ece,
        linear_probe_test_accuracy=probe_measured.accuracy,
        truncated_fraction=found.truncated_fraction,
        seconds={
            "extract": round(found.extraction.seconds, 3),
            "extract_all_runs": round(found.extraction.store.seconds, 3),
            "leaks": round(leak_seconds, 3),
            "fit": round(fit_seconds, 3),
            "fit_compile": round(compiling.seconds, 3),
            "baseline": round(probe.seconds, 3),
        },
        peak_rss_mb=_peak_rss_mb(),
        artefact=str(out),
        store=str(found.extraction.store.path),
        seed=config.seed,
        versions={name: version(name) for name in _SOLVER_PACKAGES} | installed_versions(),
        linear_probe_test_accuracy_interval=probe_measured.accuracy_interval,
        linear_probe_C=probe.C,
        calibration_temperature=temperature,
        path=[
            {
                "beta": point.beta,
                "validation_loss": point.loss,
                "standard_error": point.standard_error,
                "difference_error": point.difference_error,
                "validation_accuracy": point.score,
                "relative_gap": point.relative_gap,
                "passes": point.passes,
                # Four digits: a drawing needs no more, and there are hundreds of gates.
                "gate_norms": [float(f"{norm:.4g}") for norm in point.gate_norms],
                "history": _history(point.history),
            }
            for point in classifier.path_
        ],
        classes=dataset.classes,
        notes=notes,
        command=as_command("fit", config),
        skipped_rows=found.skipped_rows,
        selection=config.selection,
        tolerance=classifier.tolerance,
        history=_history(classifier.history_),
        **found.feature_figures(),
        leaks=leaks,
    )

    def write_more(folder: Path) -> None:
        write_model_card(folder, record)
        if config.embed_samples:
            inputs = dict(
                zip(dataset.splits["test"].ids, dataset.splits["test"].inputs, strict=True)
            )
            write_samples(folder, test, inputs, head_probabilities, dataset.classes)
        write_report(
            folder,
            record,
            labels=test.labels,
            head_probabilities=head_probabilities,
            probe_probabilities=probe_probabilities,
        )

    with reporter.stage("report", total=None):
        write_artefact(
            out,
            head,
            modality=dataset.modality,
            backbone=found.extractor.name,
            backbone_fingerprint=found.extractor.fingerprint(),
            facts={
                "certificate": certificate._asdict(),
                "block_rows": classifier.block_rows_,
                "backbone_options": found.extractor.fingerprint().get("options", {}),
                "record": record,
            },
            write_more=write_more,
        )
    return record


def _default_backbone(dataset: Dataset) -> str:
    if dataset.modality == "features":
        return f"precomputed:{check_width(dataset.splits['train'].inputs, dataset.name)}"
    return DEFAULT_BACKBONES[dataset.modality]


def extract_features(
    config: ExtractConfig, reporter: Reporter, given: Extractor | None = None
) -> Extracted:
    """Loads the data and fills their store; what other verbs begin with."""
    if config.backbone not in (None, "precomputed") and given is None:
        parse_name(config.backbone)  # a misspelt name is said before the data are read
    dataset = load_task(
        config.data,
        data_root=config.data_root,
        text_column=config.text_column,
        image_column=config.image_column,
        label_column=config.label_column,
        features_column=config.features_column,
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
            f"{extractor.modality}: name a backbone for {dataset.modality}, for example "
            f"--backbone {default}"
        )
    extraction = _with_progress(config, dataset, extractor, reporter)
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
    if config.store_dtype != "float32":
        lost = extraction.store.manifest.storage_error
        reporter.note(
            f"features are stored as {config.store_dtype}: they differ from float32 by "
            f"{lost['mean']:.1e} of a row's norm in the mean, {lost['max']:.1e} at most"
        )
    return Extracted(dataset, extractor, extraction)


def _with_progress(
    config: ExtractConfig, dataset: Dataset, extractor: Extractor, reporter: Reporter
) -> Extraction:
    """`extract`, with a stage that begins when it is known how much there is to do."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        advance: list[Any] = []

        def on_start(total: int, resumed: int) -> None:
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
            dtype=config.store_dtype,
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


def _fit_head(
    config: FitConfig,
    dataset: Dataset,
    train: StoredRows,
    validation: StoredRows,
    reporter: Reporter,
) -> ConvexHeadClassifier:
    from sklearn.exceptions import ConvergenceWarning

    from convex_heads import ConvexHeadClassifier

    _check_labels(train.labels, dataset, "train")
    unseen = np.setdiff1d(validation.labels, train.labels)
    if len(unseen):
        raise InputError(
            f"validation has the class '{dataset.classes[unseen[0]]}' that train does not have"
        )
    options: dict[str, Any] = {}
    if config.tolerance is not None:
        options["tolerance"] = config.tolerance
    classifier = ConvexHeadClassifier(
        n_gates=config.n_gates,
        gates=config.gates,
        beta=config.beta,
        penalty=config.penalty,
        activation=config.activation,
        solver=config.solver,
        loss=config.loss,
        class_weight="balanced" if config.class_weight == "balanced" else None,
        max_seconds=config.max_seconds,
        selection=config.selection.replace("-", "_"),
        random_state=config.seed,
        **options,
    )
    with reporter.stage("fit", total=100) as stage, warnings.catch_warnings():
        shown = 0

        def on_progress(done: float) -> None:
            nonlocal shown
            percent = int(100 * done)
            stage.advance(max(0, percent - shown))
            shown = max(shown, percent)

        def on_record(record: Record) -> None:
            # Before the first bound there is no gap.
            gap = f"gap {record.relative_gap:.1e}" if record.relative_gap < 1 else "no gap yet"
            stage.detail(f"{gap}, {record.passes:.0f} passes")

        # The gap is in the record, and a gap above the tolerance becomes a note there.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(
            train.features,
            train.labels,
            X_val=validation.features,
            y_val=validation.labels,
            on_progress=on_progress,
            on_record=on_record,
        )


def _history(records: Sequence[Record]) -> list[dict[str, float]]:
    return [
        {
            "passes": record.passes,
            "seconds": record.seconds,
            "relative_gap": float(f"{record.relative_gap:.4g}"),
        }
        for record in records
    ]


def _check_labels(labels: np.ndarray, dataset: Dataset, split: str) -> None:
    """Rows left out on the way can take a class with them."""
    missing = np.setdiff1d(np.arange(len(dataset.classes)), labels)
    if len(missing):
        raise InputError(
            f"no usable row of the class '{dataset.classes[missing[0]]}' is left in {split}"
        )


def _slug(extractor: Extractor) -> str:
    return parse_name(extractor.name).slug


def _peak_rss_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes here
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
