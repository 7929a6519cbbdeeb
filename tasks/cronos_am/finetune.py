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
from pathlib import Path
from typing import Any

import numpy as np

from convex_heads import ConvexHeadClassifier
from convex_heads.limits import Limits
from convex_heads.programs import default_tolerance
from extractors.base import Extractor
from extractors.blocks import CutBackbone
from extractors.changes import with_changes
from extractors.encode import encode_rows
from extractors.errors import InputError, worded
from extractors.store import StoredRows, default_cache_dir
from tasks.artefact import Head, check_destination
from tasks.compile_clock import compile_clock
from tasks.config import FinetuneConfig
from tasks.config_files import as_command
from tasks.console import Reporter
from tasks.cronos_am import checkpoint
from tasks.cronos_am.activations import CachedRows, activation_folder, cached_rows
from tasks.cronos_am.alternate import Alternated, Joint, alternate
from tasks.cronos_am.block_step import BlockOptions
from tasks.data.labels import row_weights
from tasks.extraction import Extracted, extract_features
from tasks.fit_head import fit_head, history_lines
from tasks.metrics import evaluate
from tasks.outcome import common_fields, default_folder, measure, save, usable_rows
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
    relative_gap (of head half-steps), train_accuracy, validation_accuracy, validation_loss,
    best_validation_accuracy (of what would be saved), seconds, and of block half-steps steps, rate,
    share (of the way that was kept), block_loss (joint objective of its last batches) and solved
    (whether it was kept with the head solved anew; the head half-step after it has nothing to do)}.
    frozen_test_accuracy: of the head of round 0.
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
    if config.out is not None:
        _check_place(config.out, resume=config.resume)  # before the work
    options = _block_options(config)
    found = extract_features(config, reporter)
    out = config.out or default_folder(config, found, "-finetuned")
    _check_place(out, resume=config.resume)
    rows = usable_rows(config, found, reporter)

    began = time.perf_counter()
    raw_train, raw_validation = (
        found.raw("train", rows.train),
        found.raw("validation", rows.validation),
    )
    cut = CutBackbone(found.extractor, config.unfreeze, raw_train[:3])
    below = (
        _below(config, found, cut, raw_train, rows.train, reporter),
        _below(config, found, cut, raw_validation, rows.validation, reporter),
    )
    seconds = {"activations": time.perf_counter() - began}

    began = time.perf_counter()
    fitted: list[ConvexHeadClassifier] = []

    def fit_on(X: np.ndarray, X_val: np.ndarray) -> ConvexHeadClassifier:
        parts = rows.train._replace(features=X), rows.validation._replace(features=X_val)
        fitted.append(fit_head(config, found, *parts, reporter))
        return fitted[-1]

    with compile_clock() as compiling:
        done = alternate(
            Joint(
                cut,
                *below,
                len(found.dataset.classes),
                fit_on,
                row_weights(config.class_weight, rows.train.labels),
            ),
            rounds=config.rounds,
            options=options,
            limits=_limits(config),
            seed=config.seed,
            budget_seconds=config.budget_seconds,
            checkpoints=_checkpoints(out),
            about=_about(config, found),
            resume=config.resume,
            reporter=reporter,
        )
    seconds["fit"] = time.perf_counter() - began
    seconds["fit_compile"] = compiling.seconds
    seconds["alternate"] = sum(line["seconds"] for line in done.history)

    final = with_changes(found.extractor, done.changed) if done.changed else found.extractor
    X_val, X_test = (
        _features(done, final, found, split, part, reporter)
        for split, part in (("validation", rows.validation), ("test", rows.test))
    )
    outcome = measure(
        done.model.network,
        config,
        found,
        rows,
        reporter,
        validation_features=X_val,
        test_features=X_test,
    )
    frozen = Head(done.first, found.dataset.classes).predict_proba(rows.test.features)
    answers = outcome.head.predict_proba(X_val).argmax(axis=1)
    notes = (*found.dataset.notes, *rows.notes)
    if not done.changed:
        notes = (
            *notes,
            "validation rows preferred no round to the frozen backbone by more than one standard "
            "error: the frozen one is saved",
        )
        reporter.note(notes[-1])
    first = fitted[0] if fitted else None  # of a run that was resumed it is gone
    record = FinetuneRecord(
        **common_fields(config, found, rows, outcome, done.certificate, out=out, seconds=seconds),
        solver=config.solver,
        penalty=done.penalty,
        n_gates=done.certificate["n_gates"],
        passes=0 if first is None else math.ceil(first.passes_),
        validation_accuracy=float(np.mean(answers == rows.validation.labels)),
        path=[],
        notes=notes,
        command=as_command("finetune", config),
        tolerance=_limits(config).tolerance,
        history=[] if first is None else history_lines(first.history_),
        unfreeze=config.unfreeze,
        n_blocks=cut.n_blocks,
        rounds=done.history,
        frozen_test_accuracy=evaluate(frozen, rows.test.labels).accuracy,
        changed_parameters=sum(values.size for values in done.changed.values()),
        interrupted=done.interrupted,
    )
    save(
        out,
        record,
        config,
        found,
        rows,
        outcome,
        done.certificate,
        reporter,
        extractor=final,
        changes=done.changed,
    )
    if done.interrupted:
        reporter.note(worded(f"the best so far is in {out}; the same with --resume goes on"))
        raise KeyboardInterrupt
    shutil.rmtree(_checkpoints(out), ignore_errors=True)
    return record


def _features(
    done: Alternated,
    final: Extractor,
    found: Extracted,
    split: str,
    rows: StoredRows,
    reporter: Reporter,
) -> np.ndarray:
    """Of rows, (n, d), as the saved artefact gives them."""
    if not done.changed:
        return rows.features * done.usable
    with reporter.stage(f"encode {split}", len(rows.ids)) as stage:
        encoded = encode_rows(final, found.raw(split, rows), list(rows.ids), progress=stage.advance)
    return encoded.features


def _checkpoints(out: Path) -> Path:
    """Beside the artefact, which is replaced as a whole."""
    return out.absolute().with_name(f"{out.name}.checkpoint")


def _check_place(out: Path, *, resume: bool) -> None:
    check_destination(out)
    folder = _checkpoints(out)
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


def _block_options(config: FinetuneConfig) -> BlockOptions:
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


def _limits(config: FinetuneConfig) -> Limits:
    tolerance = config.tolerance or default_tolerance(config.activation, config.loss)
    return Limits(tolerance=tolerance, max_seconds=config.max_seconds)


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
