"""A fitted head measured, described and saved: how the verbs `fit` and `finetune` end.

Validation rows choose the temperature and the probe's C; test rows are measured once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from convex_heads.decode import TwoLayer
from convex_heads.sources import is_streamed
from extractors.base import Extractor
from extractors.manifest import installed_versions
from extractors.names import parse_name
from extractors.store import StoredRows, default_cache_dir
from tasks.artefact import Head, write_artefact
from tasks.baselines import SETTINGS, LinearProbe, linear_probe
from tasks.calibration import fit_temperature
from tasks.cluster import chosen_devices
from tasks.config import FitConfig
from tasks.console import Reporter
from tasks.data.columns import ColumnChoice
from tasks.data.leaks import check_leaks
from tasks.data.registry import named_columns
from tasks.extraction import Extracted
from tasks.memory import peak_rss_mb
from tasks.metrics import Metrics, evaluate
from tasks.records import FitRecord
from tasks.reports.card import read_comparison
from tasks.reports.mistakes import write_samples
from tasks.reports.report import write_model_card, write_report
from tasks.streamed_probe import STREAMED, streamed_probe

_SOLVER_PACKAGES = ("convex-heads", "jax", "jaxlib", "scikit-learn")


@dataclass(frozen=True)
class UsableRows:
    """The stored rows of each split after the leak check, what it found, and its seconds.

    notes: what a reader should know of them.
    """

    train: StoredRows
    validation: StoredRows
    test: StoredRows
    leaks: dict[str, Any] | None
    seconds: float
    notes: tuple[str, ...] = ()


def usable_rows(
    config: FitConfig, found: Extracted, reporter: Reporter, *, streamed: bool = False
) -> UsableRows:
    """Reads the rows of all splits and looks for duplicates, unless told not to.

    streamed: features stay in the store until they are needed.
    """
    splits = ("train", "validation", "test")
    rows = {split: found.rows(split, streamed=streamed) for split in splits}
    began = time.perf_counter()
    leaks = None
    if config.leak_check:
        leaks, rows = check_leaks(
            rows,
            found.digests(rows),
            drop=config.drop_leaks,
            inputs={split: found.inputs(split) for split in rows},
            reporter=reporter,
        )
    notes = unseen_notes(rows["train"].labels, rows["validation"].labels, found.dataset.classes)
    for note in notes:
        reporter.note(note)
    return UsableRows(**rows, leaks=leaks, seconds=time.perf_counter() - began, notes=notes)


def unseen_notes(
    train: np.ndarray, validation: np.ndarray, classes: Sequence[str]
) -> tuple[str, ...]:
    """What to know of validation rows that lack a class.

    >>> unseen_notes(np.array([0, 1, 2]), np.array([0, 2]), ("ant", "bee", "fly"))
    ('validation rows hold no bee: beta and temperature are chosen without it',)
    """
    absent = np.setdiff1d(train, validation).tolist()
    if not absent:
        return ()
    names = " and no ".join(classes[int(c)] for c in absent[:5])
    more = f" and none of {len(absent) - 5} more classes" if len(absent) > 5 else ""
    it = "it" if len(absent) == 1 else "them"
    return (f"validation rows hold no {names}{more}: beta and temperature are chosen without {it}",)


def default_folder(config: FitConfig, found: Extracted, more: str = "") -> Path:
    """Where an artefact goes that no --out names: under the cache directory."""
    cache = config.cache_dir or default_cache_dir()
    slug = parse_name(found.extractor.name).slug
    return cache / "artefacts" / f"{found.dataset.slug}-{slug}{more}"


@dataclass(frozen=True)
class Outcome:
    """A head beside the linear probe on the test rows.

    Attributes:
        head: as deployed (calibrated).
        temperature: of its calibration; None without one.
        probabilities: (n_test, C) of the head.
        measured: on them.
        probe: on the frozen features, calibrated where the head is.
        probe_probabilities: (n_test, C).
        probe_measured: on them.
        notes: what a reader of the figures should know.
    """

    head: Head
    temperature: float | None
    probabilities: np.ndarray
    measured: Metrics
    probe: LinearProbe
    probe_probabilities: np.ndarray
    probe_measured: Metrics
    notes: tuple[str, ...] = ()


def measure(
    network: TwoLayer,
    config: FitConfig,
    found: Extracted,
    rows: UsableRows,
    reporter: Reporter,
    *,
    validation_features: np.ndarray | None = None,
    test_features: np.ndarray | None = None,
) -> Outcome:
    """Tunes the linear probe, calibrates it and the head, and measures both.

    Args:
        network: what was fitted.
        config: whether to calibrate and to weigh classes; the devices of a streamed probe.
        found: the data set, for its classes.
        rows: labels, and the frozen features (n, d), which the probe takes.
        reporter: hears of the probe's progress.
        validation_features: (n, d) that the head takes, where they are not the frozen ones.
        test_features: the same of the test rows.
    """
    train, validation, test = rows.train, rows.validation, rows.test
    X_val = validation.features if validation_features is None else validation_features
    X_test = test.features if test_features is None else test_features
    classes = found.dataset.classes
    temperature = None
    if config.calibrate == "temperature":
        temperature = fit_temperature(network.scores(X_val), network.loss, validation.labels)
    head = Head(network, classes, 1.0 if temperature is None else temperature)
    streamed = is_streamed(train.features)
    with reporter.stage("linear probe", total=SETTINGS) as stage, chosen_devices(config):
        probe = (streamed_probe if streamed else linear_probe)(
            train.features,
            train.labels,
            validation.features,
            validation.labels,
            n_classes=len(classes),
            class_weight=None if config.class_weight == "none" else config.class_weight,
            min_spread=found.min_spread,
            progress=stage.advance,
        )
    if config.calibrate == "temperature":  # or its NLL and ECE would be no match for the head's
        probe = probe.calibrated(validation.features, validation.labels)
    p, probe_p = head.predict_proba(X_test), probe.predict_proba(test.features)
    notes = (STREAMED,) if streamed else ()
    return Outcome(
        head=head,
        temperature=temperature,
        probabilities=p,
        measured=evaluate(p, test.labels),
        probe=probe,
        probe_probabilities=probe_p,
        probe_measured=evaluate(probe_p, test.labels),
        notes=notes,
    )


def common_fields(
    config: FitConfig,
    found: Extracted,
    rows: UsableRows,
    outcome: Outcome,
    certificate: Mapping[str, Any],
    *,
    out: Path,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The fields of `FitRecord` that are the same for every head.

    seconds: of the verb's own steps; those of extraction, leak check and probe are put around them.
    """
    proven = ("beta", "beta_max", "primal", "dual", "relative_gap", "cone_violation")
    pattern_violation = certificate["pattern_violation"]
    clock = {
        "extract": found.extraction.seconds,
        "extract_all_runs": found.extraction.store.seconds,
        "leaks": rows.seconds,
        **seconds,
        "baseline": outcome.probe.seconds,
    }
    return {
        "task": found.dataset.name,
        "backbone": found.extractor.name,
        "modality": found.dataset.modality,
        "n_train": len(rows.train.ids),
        "n_validation": len(rows.validation.ids),
        "n_test": len(rows.test.ids),
        "dim": found.extraction.dim,
        "n_classes": len(found.dataset.classes),
        "activation": config.activation,
        "loss": outcome.head.network.loss,
        **{name: certificate[name] for name in proven},
        "pattern_violation": pattern_violation if math.isfinite(pattern_violation) else None,
        "test_accuracy": outcome.measured.accuracy,
        "test_accuracy_interval": outcome.measured.accuracy_interval,
        "test_macro_f1": outcome.measured.macro_f1,
        "test_top5_accuracy": outcome.measured.top5_accuracy,
        "linear_probe_test_top5_accuracy": outcome.probe_measured.top5_accuracy,
        "test_nll": outcome.measured.nll,
        "test_ece": outcome.measured.ece,
        "linear_probe_test_accuracy": outcome.probe_measured.accuracy,
        "linear_probe_test_accuracy_interval": outcome.probe_measured.accuracy_interval,
        "linear_probe_C": outcome.probe.C,
        "linear_probe_temperature": outcome.probe.temperature,
        "calibration_temperature": outcome.temperature,
        "truncated_fraction": found.truncated_fraction,
        "seconds": {name: round(value, 3) for name, value in clock.items()},
        "peak_rss_mb": peak_rss_mb(),
        "artefact": str(out),
        "store": str(found.extraction.store.path),
        "seed": config.seed,
        "versions": {name: version(name) for name in _SOLVER_PACKAGES} | installed_versions(),
        "classes": found.dataset.classes,
        "left_out_classes": found.dataset.left_out_classes,
        **found.skipped_figures(),
        "selection": config.selection,
        "class_weight": config.class_weight,
        "leaks": rows.leaks,
        **found.feature_figures(),
    }


def save(
    out: Path,
    record: FitRecord,
    config: FitConfig,
    found: Extracted,
    rows: UsableRows,
    outcome: Outcome,
    certificate: Mapping[str, Any],
    reporter: Reporter,
    *,
    extractor: Extractor | None = None,
    changes: Mapping[str, np.ndarray] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes the artefact with its model card and report, and samples where they are asked for.

    Args:
        out: its folder.
        record: what the card and the report tell.
        config: whether samples are embedded.
        found: data set and backbone.
        rows: of which the test labels are told.
        outcome: the head, and what was measured.
        certificate: JSON-able.
        reporter: told that a report is written.
        extractor: the backbone with its changes, where it has any.
        changes: those weights.
        facts: more of ``config.json``.
    """
    comparison = None if config.comparison is None else read_comparison(config.comparison)

    def write_more(folder: Path) -> None:
        write_model_card(folder, record, comparison)
        if config.embed_samples:
            inputs = found.inputs("test")
            write_samples(folder, rows.test, inputs, outcome.probabilities, outcome.head.classes)
        write_report(
            folder,
            record,
            labels=rows.test.labels,
            head_probabilities=outcome.probabilities,
            probe_probabilities=outcome.probe_probabilities,
        )

    with reporter.stage("report", total=None):
        write_artefact(
            out,
            outcome.head,
            modality=found.dataset.modality,
            backbone=found.extractor.name,
            backbone_fingerprint=(extractor or found.extractor).fingerprint(),
            facts={
                "certificate": dict(certificate),
                **(facts or {}),
                "backbone_options": found.extractor.fingerprint().get("options", {}),
                "columns": named_columns(
                    config.data,
                    ColumnChoice(
                        config.text_column,
                        config.image_column,
                        config.label_column,
                        config.features_column,
                    ),
                ),
                "record": record,
                "stores": [str(found.extraction.store.path.absolute())],
            },
            write_more=write_more,
            changes=changes,
        )
