"""The verb `fit`: rows -> features in a store -> certified head -> metrics -> artefact and report.

Validation rows choose (beta, temperature, the probe's C); test rows are compared with the others to
find duplicates, and measured once, at the end.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from extractors.base import Extractor
from tasks.artefact import check_destination
from tasks.cluster import after_the_first, chosen_devices, join_cluster
from tasks.compile_clock import compile_clock
from tasks.config import FitConfig
from tasks.config_files import as_command
from tasks.console import Reporter
from tasks.extraction import extract_features
from tasks.fit_head import fit_head, history_lines, precision_note, unproven_note
from tasks.outcome import common_fields, default_folder, measure, save, usable_rows
from tasks.records import FitRecord
from tasks.reports.card import read_comparison
from tasks.streaming import is_larger_than_memory


def run_fit(
    config: FitConfig, *, reporter: Reporter, extractor: Extractor | None = None
) -> FitRecord:
    """Runs the main job and writes the artefact.

    Args:
        config: what to fit on what.
        reporter: hears of progress.
        extractor: as in `tasks.extraction.run_extract`.

    Raises:
        InputError: options, data, backbone or rows that cannot be used.
        MachineError: disk, memory or network.
    """
    if config.out is not None:
        check_destination(config.out)  # before the work
    if config.comparison is not None:
        read_comparison(config.comparison)  # this too
    join_cluster(config)
    with after_the_first(config):
        found = extract_features(config, reporter, extractor)
    out = config.out or default_folder(config, found)
    check_destination(out)
    streamed = is_larger_than_memory(found)
    if streamed:
        reporter.note("the features are larger than memory: they are read from the store as needed")
    rows = usable_rows(config, found, reporter, streamed=streamed)

    with compile_clock() as compiling, chosen_devices(config):
        import convex_heads  # noqa: F401  # that JAX begins is no part of the fit

        began = time.perf_counter()
        classifier = fit_head(config, found, rows.train, rows.validation, reporter)
        took = time.perf_counter() - began
    seconds = {"fit": took, "fit_compile": compiling.seconds}

    outcome = measure(classifier.network_, config, found, rows, reporter)
    certificate = classifier.certificate_
    for note in outcome.notes:
        reporter.note(note)
    notes = (*found.dataset.notes, *rows.notes, *outcome.notes)
    effect = classifier.precision_effect_
    if effect is not None:
        notes = (*notes, precision_note(effect))
        reporter.note(notes[-1])
    if certificate.relative_gap > classifier.tolerance_:
        notes = (*notes, unproven_note(classifier.status_, certificate.relative_gap))
        reporter.note(notes[-1])
    proven = certificate._asdict()
    record = FitRecord(
        **common_fields(config, found, rows, outcome, proven, out=out, seconds=seconds),
        solver=classifier.solver_,
        penalty=classifier.penalty_,
        n_gates=len(classifier.gates_),
        passes=int(np.ceil(classifier.passes_)),
        validation_accuracy=classifier.score(rows.validation.features, rows.validation.labels),
        path=[_path_line(point) for point in classifier.path_],
        notes=notes,
        command=as_command("fit", config),
        tolerance=classifier.tolerance_,
        precision=config.precision,
        precision_effect=None if effect is None else effect._asdict(),
        history=history_lines(classifier.history_),
    )
    block_rows = {"block_rows": classifier.block_rows_}
    if not config.process:
        save(out, record, config, found, rows, outcome, proven, reporter, facts=block_rows)
    return record


def _path_line(point: Any) -> dict[str, Any]:
    return {
        "beta": point.beta,
        "validation_loss": point.loss,
        "standard_error": point.standard_error,
        "difference_error": point.difference_error,
        "validation_accuracy": point.score,
        "relative_gap": point.relative_gap,
        "passes": point.passes,
        # Four digits: a drawing needs no more, and there are hundreds of gates.
        "gate_norms": [float(f"{norm:.4g}") for norm in point.gate_norms],
        "history": history_lines(point.history),
    }
