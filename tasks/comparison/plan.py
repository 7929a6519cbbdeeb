"""What is compared with what, before any method is fitted: rows, methods, and every trial.

Rows are extracted once; for every seed the training and validation rows are drawn anew from all
rows that are not test rows (`tasks.comparison.draws`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from extractors.errors import InputError
from extractors.store import StoredRows
from tasks.comparison.draws import curve_sizes, draw
from tasks.comparison.ledger import Trial
from tasks.comparison.rows import common_rows, trial_rows, without_leaks
from tasks.comparison.trial import Rows
from tasks.comparison.verdict import order
from tasks.config import CompareConfig
from tasks.console import Reporter
from tasks.data.load import Dataset
from tasks.extraction import Extracted, extract_features
from tasks.methods import METHODS, default_methods
from tasks.standardise import min_spread_of

_JOIN = " + "
_MOST_VALIDATION = 0.3
# The first of these that is compared tells what it thinks of rows it was not fitted on.
_ADVISERS = ("convex", "linear")
# Of the head, as `ConvexHeadClassifier` names them.
_HEAD = (
    "activation",
    "loss",
    "n_gates",
    "gates",
    "beta",
    "penalty",
    "solver",
    "tolerance",
    "max_seconds",
    "precision",
)


@dataclass(frozen=True)
class Plan:
    """Everything that is settled before any method is fitted.

    names: of the backbones, and where there are several of all side by side. splits: rows of the
    first backbone without those that were left out. pools, tests: for each of `names`. fraction: of
    the pool that validates. sizes: (shots, train_rows) of every comparison.
    """

    found: Sequence[Extracted]
    names: Sequence[str]
    methods: Sequence[str]
    splits: Mapping[str, StoredRows]
    leaks: Mapping[str, Any] | None
    pools: Sequence[Rows]
    tests: Sequence[Rows]
    fraction: float
    sizes: Sequence[tuple[int | None, int | None]]
    seeds: tuple[int, ...]

    @property
    def dataset(self) -> Dataset:
        """The same for every backbone."""
        return self.found[0].dataset

    @property
    def adviser(self) -> Trial | None:
        """The trial that tells what it thinks of rows it was not fitted on."""
        for method in _ADVISERS:
            if method in self.methods:
                return Trial(method, self.names[0], *self.sizes[-1], self.seeds[0])
        return None


def make_plan(config: CompareConfig, reporter: Reporter) -> Plan:
    """Extracts the features of all rows and settles which of them are compared on.

    Raises:
        InputError: options, data or backbones that cannot be used, too few rows.
        MachineError: disk, memory or network.
    """
    found = [
        extract_features(dataclasses.replace(config, backbone=name), reporter)
        for name in config.backbones
    ]
    dataset = found[0].dataset
    if dataset.targets is not None and config.shots:
        raise InputError("--shots counts the rows of a class, and these rows have several labels")
    splits = common_rows(found)
    leaks = None
    if config.leak_check:
        leaks, splits = without_leaks(config, found, splits, reporter)
    names = [each.extractor.name for each in found]
    if len(names) > 1:
        names.append(_JOIN.join(names))
    methods = order(
        config.methods or default_methods(dataset.modality, dataset.targets is not None)
    )
    trained = any(METHODS[method].trains_backbone for method in methods)
    pools, tests = trial_rows(found[0], splits, raw=trained)
    given = (len(splits[0]["train"].ids), len(splits[0]["validation"].ids))
    fraction = min(_MOST_VALIDATION, given[1] / sum(given))
    return Plan(
        found,
        names,
        methods,
        splits[0],
        leaks,
        pools,
        tests,
        fraction,
        _sizes(config, pools[0].labels, pools[0].digests, fraction, len(dataset.classes)),
        tuple(range(config.seed, config.seed + config.seeds)),
    )


def all_trials(plan: Plan) -> dict[str, list[Trial]]:
    """Every trial, by the backbone whose features it is given."""
    return {
        name: [
            Trial(method, name, shots, rows, seed)
            for method in plan.methods
            # Words are the same beside every backbone: once is enough.
            if name == plan.names[0] or not METHODS[method].text_only
            for shots, rows in plan.sizes
            for seed in plan.seeds
        ]
        for name in plan.names
    }


def job_of(config: CompareConfig, plan: Plan) -> dict[str, Any]:
    """What the processes of the methods are told beside their rows."""
    adviser = plan.adviser
    return {
        "fraction": plan.fraction,
        "n_classes": len(plan.dataset.classes),
        "min_spread": min_spread_of(plan.dataset.modality),
        "options": _head_options(config),
        "class_weight": None if config.class_weight == "none" else config.class_weight,
        "calibrate": config.calibrate == "temperature",
        "cross_fit": None if adviser is None else list(adviser),
        "backbone": {
            "options": config.feature_options().chosen(),
            "device": config.device,
            "trust_remote_code": config.trust_remote_code,
        },
        "budget_seconds": config.budget_seconds,
    }


def _sizes(
    config: CompareConfig,
    labels: np.ndarray,
    digests: Sequence[bytes],
    fraction: float,
    n_classes: int,
) -> list[tuple[int | None, int | None]]:
    """(shots, train_rows) of every comparison that was asked for; refused before any is begun."""
    if config.shots:
        for shots in config.shots:
            draw(labels, digests, config.seed, fraction=fraction, shots=shots)
        return [(shots, None) for shots in config.shots]
    n_train = len(draw(labels, digests, config.seed, fraction=fraction).train)
    points = curve_sizes(n_train, n_classes) if config.curve else ()
    return [(None, rows) for rows in (*points, None)]


def _head_options(config: CompareConfig) -> dict[str, Any]:
    """Options of the convex head that are not its defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    options = {name: getattr(config, name) for name in _HEAD}
    options = {name: value for name, value in options.items() if value != defaults[name]}
    if config.selection != "best":
        options["selection"] = config.selection.replace("-", "_")
    return options


def about(config: CompareConfig, plan: Plan) -> dict[str, Any]:
    """What makes two comparisons different ones."""
    return {
        "data": plan.dataset.fingerprint,
        "backbones": {each.extractor.name: each.extractor.fingerprint() for each in plan.found},
        "store dtype": config.stored_as,
        "train rows": config.train_rows,
        "test rows": config.test_rows,
        "seed of the rows": config.seed if config.train_rows or config.test_rows else None,
        "validation fraction": plan.fraction,
        "duplicates left out": config.drop_leaks,
        "calibration": config.calibrate,
        "head": _head_options(config),
        "class weight": config.class_weight,
        **({} if config.budget_seconds is None else {"budget seconds": config.budget_seconds}),
    }
