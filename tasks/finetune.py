"""The verb `finetune`: rows -> frozen features -> CRONOS-AM -> metrics -> artefact and report.

As in `tasks.fit`, validation rows choose (beta, round, temperature) and test rows are measured
once. The features of the final model are those that the saved artefact gives: the backbone is
loaded anew with the changed weights in place.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from extractors.blocks import CutBackbone
from extractors.changes import with_changes
from extractors.encode import encode_rows
from extractors.errors import InputError
from extractors.manifest import installed_versions
from extractors.store import StoredRows, default_cache_dir
from tasks import checkpoint
from tasks.activations import CachedRows, activation_folder, cached_rows
from tasks.config import FinetuneConfig, as_command
from tasks.console import Reporter
from tasks.fit import (
    _SOLVER_PACKAGES,
    Extracted,
    _fit_head,
    _history,
    _peak_rss_mb,
    _slug,
    extract_features,
)
from tasks.records import FitRecord

# What a checkpoint does not depend on.
_FREE = ("out", "resume", "rounds", "budget_seconds", "device", "cache_dir", "data_root")
_FREE += ("calibrate", "engine", "workers")


@dataclass(frozen=True, kw_only=True)
class FinetuneRecord(FitRecord):
    """A head and fine-tuned blocks: the fields of FitRecord, and how the rounds went.

    dual and relative_gap prove the head optimal for the features of these blocks; nothing is proven
    of the blocks. rounds: a line for each half-step, {round (0: the frozen backbone), half (block
    or head), kept, objective (joint, after it), tried (of a half-step that was rolled back),
    relative_gap (of head half-steps), train_accuracy, validation_accuracy,
    best_validation_accuracy (of what would be saved), seconds, and of block half-steps steps, rate,
    share (of the way that was kept) and block_loss}. frozen_test_accuracy: of the head of round 0.
    changed_parameters: numbers of the backbone that differ from the published ones; 0 where
    validation rows preferred none of the rounds. seconds has the keys of FitRecord, activations
    (rows below the cut) and alternate.
    """

    unfreeze: int
    n_blocks: int
    rounds: list[dict[str, Any]]
    frozen_test_accuracy: float
    changed_parameters: int
    interrupted: bool


def run_finetune(config: FinetuneConfig, *, reporter: Reporter) -> FinetuneRecord:
    """Runs the alternation and writes the artefact.

    Args:
        config: what to train on what.
        reporter: hears of progress.

    Raises:
        InputError: options, data, backbone or rows that cannot be used.
        MachineError: disk, memory or network.
        KeyboardInterrupt: after Ctrl-C during the rounds, when the best so far has been saved.
    """
    from tasks.alternate import Joint, alternate
    from tasks.artefact import Head, check_destination, write_artefact
    from tasks.baselines import SETTINGS, linear_probe
    from tasks.calibration import fit_temperature
    from tasks.compile_clock import compile_clock
    from tasks.leaks import check_leaks
    from tasks.metrics import evaluate
    from tasks.report import write_model_card, write_report

    if config.out is not None:
        check_destination(config.out)
        _check_checkpoint(_checkpoints(config.out), resume=config.resume)
    found = extract_features(config, reporter)
    dataset, extractor = found.dataset, found.extractor
    out = config.out
    if out is None:
        cache = config.cache_dir or default_cache_dir()
        out = cache / "artefacts" / f"{Path(dataset.name).stem}-{_slug(extractor)}-finetuned"
        check_destination(out)
        _check_checkpoint(_checkpoints(out), resume=config.resume)
    rows = {split: found.rows(split) for split in ("train", "validation", "test")}
    inputs = {
        name: dict(zip(split.ids, split.inputs, strict=True))
        for name, split in dataset.splits.items()
    }
    began = time.perf_counter()
    leaks = None
    if config.leak_check:
        leaks, rows = check_leaks(
            rows, found.digests(rows), drop=config.drop_leaks, inputs=inputs, reporter=reporter
        )
    leak_seconds = time.perf_counter() - began
    train, validation, test = rows["train"], rows["validation"], rows["test"]
    raw = {name: [inputs[name][i] for i in part.ids] for name, part in rows.items()}

    began = time.perf_counter()
    cut = CutBackbone(extractor, config.unfreeze, raw["train"][:3])
    cached = {
        name: _below(config, found, cut, raw[name], rows[name], reporter)
        for name in ("train", "validation")
    }
    activation_seconds = time.perf_counter() - began

    began = time.perf_counter()
    fitted: list[Any] = []

    def fit_head(X: np.ndarray, X_val: np.ndarray) -> Any:
        parts = train._replace(features=X), validation._replace(features=X_val)
        fitted.append(_fit_head(config, dataset, *parts, reporter))
        return fitted[-1]

    checkpoints = _checkpoints(out)
    with compile_clock() as compiling:
        done = alternate(
            Joint(
                cut,
                cached["train"],
                cached["validation"],
                len(dataset.classes),
                fit_head,
                _weights(config, train.labels),
            ),
            rounds=config.rounds,
            options=_block_options(config),
            penalty=config.penalty,
            limits=_limits(config),
            seed=config.seed,
            budget_seconds=config.budget_seconds,
            checkpoints=checkpoints,
            about=_about(config, found),
            resume=config.resume,
            reporter=reporter,
        )
    seconds = time.perf_counter() - began
    network = done.model.network
    final = with_changes(extractor, done.changed) if done.changed else extractor
    usable = done.usable

    def features(name: str) -> np.ndarray:
        if not done.changed:
            return rows[name].features * usable
        ids = list(rows[name].ids)
        with reporter.stage(f"encode {name}", len(ids)) as stage:
            encoded = encode_rows(final, raw[name], ids, progress=stage.advance)
        return encoded.features

    X_val, X_test = features("validation"), features("test")
    temperature = None
    if config.calibrate == "temperature":
        temperature = fit_temperature(network.scores(X_val), network.loss, validation.labels)
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
    head_probabilities = head.predict_proba(X_test)
    probe_probabilities = probe.predict_proba(test.features)
    measured = evaluate(head_probabilities, test.labels)
    probe_measured = evaluate(probe_probabilities, test.labels)
    frozen = Head(done.first, dataset.classes).predict_proba(test.features)
    certificate = done.certificate
    notes = dataset.notes
    if not done.changed:
        notes = (
            *notes,
            "validation rows preferred no round to the frozen backbone by more than one standard "
            "error: the frozen one is saved",
        )
        reporter.note(notes[-1])
    first = fitted[0] if fitted else None  # of a run that was resumed it is gone
    record = FinetuneRecord(
        task=dataset.name,
        backbone=extractor.name,
        modality=dataset.modality,
        n_train=len(train.ids),
        n_validation=len(validation.ids),
        n_test=len(test.ids),
        dim=found.extraction.dim,
        n_classes=len(dataset.classes),
        activation=config.activation,
        loss=network.loss,
        solver=config.solver,
        n_gates=certificate["n_gates"],
        beta=certificate["beta"],
        beta_max=certificate["beta_max"],
        primal=certificate["primal"],
        dual=certificate["dual"],
        relative_gap=certificate["relative_gap"],
        cone_violation=certificate["cone_violation"],
        pattern_violation=_finite(certificate["pattern_violation"]),
        penalty=config.penalty,
        passes=0 if first is None else math.ceil(first.passes_),
        validation_accuracy=float(
            np.mean(head.predict_proba(X_val).argmax(axis=1) == validation.labels)
        ),
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
            "activations": round(activation_seconds, 3),
            "fit": round(seconds, 3),
            "fit_compile": round(compiling.seconds, 3),
            "alternate": round(sum(line["seconds"] for line in done.history), 3),
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
        path=[],
        classes=dataset.classes,
        notes=notes,
        command=as_command("finetune", config),
        skipped_rows=found.skipped_rows,
        selection=config.selection,
        tolerance=_limits(config).tolerance,
        history=[] if first is None else _history(first.history_),
        **found.feature_figures(),
        leaks=leaks,
        unfreeze=config.unfreeze,
        n_blocks=cut.n_blocks,
        rounds=done.history,
        frozen_test_accuracy=evaluate(frozen, test.labels).accuracy,
        changed_parameters=sum(values.size for values in done.changed.values()),
        interrupted=done.interrupted,
    )

    def write_more(folder: Path) -> None:
        write_model_card(folder, record)
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
            backbone=extractor.name,
            backbone_fingerprint=final.fingerprint(),
            facts={
                "certificate": dict(certificate),
                "backbone_options": extractor.fingerprint().get("options", {}),
                "record": record,
            },
            write_more=write_more,
            changes=done.changed,
        )
    if done.interrupted:
        reporter.note(f"the best so far is in {out}; with --resume the same command goes on")
        raise KeyboardInterrupt
    shutil.rmtree(checkpoints, ignore_errors=True)
    return record


def _checkpoints(out: Path) -> Path:
    """Beside the artefact, which is replaced as a whole."""
    return out.absolute().with_name(f"{out.name}.checkpoint")


def _check_checkpoint(folder: Path, *, resume: bool) -> None:
    there = checkpoint.is_there(folder)
    if there and not resume:
        raise InputError(
            f"{folder} holds the checkpoint of a run that was interrupted: add --resume to go on "
            "from it, or remove it"
        )
    if resume and not there:
        raise InputError(f"--resume: there is no checkpoint {folder}; leave --resume out")


def _below(
    config: FinetuneConfig,
    found: Extracted,
    cut: CutBackbone,
    inputs: list[Any],
    rows: StoredRows,
    reporter: Reporter,
) -> CachedRows:
    cache = config.cache_dir or default_cache_dir()
    folder = activation_folder(cache, cut, list(rows.ids), found.dataset.fingerprint)
    with reporter.stage("activations", len(inputs)) as stage:
        return cached_rows(cut, inputs, np.array(rows.labels), folder, progress=stage.advance)


def _block_options(config: FinetuneConfig) -> Any:
    from tasks.block_step import BlockOptions

    return BlockOptions(
        optimizer=config.optimizer,
        epochs=config.epochs,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        rate=config.learning_rate,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
        dropout=config.dropout,
        lora=config.lora,
    )


def _limits(config: FinetuneConfig) -> Any:
    from convex_heads.limits import Limits

    if config.tolerance is None:
        return Limits(max_seconds=config.max_seconds)
    return Limits(tolerance=config.tolerance, max_seconds=config.max_seconds)


def _weights(config: FinetuneConfig, labels: np.ndarray) -> np.ndarray | None:
    """Row weights under --class-weight balanced."""
    if config.class_weight != "balanced":
        return None
    counts = np.bincount(labels)
    return (len(labels) / (np.count_nonzero(counts) * counts[labels])).astype(np.float64)


def _about(config: FinetuneConfig, found: Extracted) -> Mapping[str, Any]:
    chosen = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name not in _FREE
    }
    return chosen | {
        "data_fingerprint": found.dataset.fingerprint,
        "backbone_fingerprint": found.extractor.fingerprint(),
    }


def _finite(value: float) -> float | None:
    return value if value is not None and math.isfinite(value) else None
