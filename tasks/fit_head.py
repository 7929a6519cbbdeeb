"""A head fitted on stored rows as the options say, with its progress and its history."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from extractors.errors import InputError, worded
from extractors.store import StoredRows, default_cache_dir
from tasks.config import FitConfig
from tasks.console import Reporter, passes_in_words

if TYPE_CHECKING:
    from convex_heads import ConvexHeadClassifier
    from convex_heads.solution import PrecisionEffect, Record, Status
    from tasks.extraction import Extracted

_UNPROVEN = {  # where the advice of the status is no option of a job
    "MAX_PASSES": "the most passes that a solve may take were not enough: raise --tolerance",
    "MAX_SECONDS": "stopped at --max-seconds: raise it, or --tolerance",
}


def fit_head(
    config: FitConfig,
    found: Extracted,
    train: StoredRows,
    validation: StoredRows,
    reporter: Reporter,
) -> ConvexHeadClassifier:
    """Fits the head that `config` describes; its path, if any, is chosen on the validation rows.

    Args:
        config: the options of the head.
        found: the data set and its backbone.
        train: rows with every class.
        validation: rows with no other class.
        reporter: hears of the share done, the gap and the passes.

    Raises:
        InputError: rows left out on the way have taken a class with them.
    """
    from sklearn.exceptions import ConvergenceWarning

    from convex_heads import ConvexHeadClassifier
    from convex_heads.checkpoint import checkpoints

    classes = found.dataset.classes
    _check_labels(train.labels, classes, "train")
    unseen = np.setdiff1d(validation.labels, train.labels)
    if len(unseen):
        raise InputError(
            f"validation has the class '{classes[unseen[0]]}' that train does not have"
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
        precision=config.precision,
        selection=config.selection.replace("-", "_"),
        min_spread=found.min_spread,
        random_state=config.seed,
        **options,
    )
    kept = checkpoints(
        (config.cache_dir or default_cache_dir()) / "checkpoints", 60 * config.checkpoint_minutes
    )
    with kept, reporter.stage("fit", total=100) as stage, warnings.catch_warnings():
        shown = 0

        def on_progress(done: float) -> None:
            nonlocal shown
            percent = int(100 * done)
            stage.advance(max(0, percent - shown))
            shown = max(shown, percent)

        def on_record(record: Record) -> None:
            # Before the first bound there is no gap.
            gap = f"gap {record.relative_gap:.1e}" if record.relative_gap < 1 else "no gap yet"
            stage.detail(f"{gap}, {passes_in_words(record.passes)}")

        # The gap is in the record, and a gap above the tolerance becomes a note there.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = classifier.fit(
            train.features,
            train.labels,
            X_val=validation.features,
            y_val=validation.labels,
            on_progress=on_progress,
            on_record=on_record,
        )
        # The last word is that of the table and the report, not of a bound on the way.
        gap = fitted.certificate_.relative_gap
        stage.detail(f"gap {gap:.1e}, {passes_in_words(fitted.passes_)}")
        return fitted


def unproven_note(status: Status, gap: float) -> str:
    """What to know of a head whose gap is above the tolerance.

    >>> from convex_heads.solution import Status
    >>> unproven_note(Status.MAX_SECONDS, 0.02)
    'stopped at max_seconds: raise it, or tolerance (gap 2.0e-02)'
    """
    return worded(f"{_UNPROVEN.get(status.name, status.value)} (gap {gap:.1e})")


def precision_note(effect: PrecisionEffect) -> str:
    """What products in less than float32 did to the gap of the final solve, in a sentence."""
    return (
        f"{effect.precision} products took {passes_in_words(effect.passes)} and the gap to "
        f"{effect.relative_gap:.1e} in float32 (through them it seemed {effect.believed_gap:.1e})"
    )


def solve_name(fraction: float) -> str:
    """The name of a point of the path in a figure, from its fraction of beta_max.

    >>> solve_name(10.0), solve_name(0.0017)
    ('10', '0.002')
    """
    return f"{float(f'{fraction:.1g}'):g}"


def history_lines(records: Sequence[Record]) -> list[dict[str, float]]:
    """What a record keeps of a solve: gap and seconds at so many data passes."""
    return [
        {
            "passes": record.passes,
            "seconds": record.seconds,
            "relative_gap": float(f"{record.relative_gap:.4g}"),
        }
        for record in records
    ]


def _check_labels(labels: np.ndarray, classes: Sequence[str], split: str) -> None:
    """Rows left out on the way can take a class with them."""
    missing = np.setdiff1d(np.arange(len(classes)), labels)
    if len(missing):
        raise InputError(f"no usable row of the class '{classes[missing[0]]}' is left in {split}")
