"""What a finished job reports: the fields of `fit --json` and `extract --json`, in their order."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ExtractRecord:
    """A filled store. seconds is wall time; resumed_rows were there before.

    truncated_fraction: share of the rows cut at the backbone's maximum length; None for images.
    feature_options: those that were chosen, see `extractors.options`. tokens: statistics of the
    texts, see `extractors.tokens`; None for images. autocast_error: of half precision or int8
    against float32, see `extractors.precision`; None where all is float32.
    skipped: (id, reason) of the first hundred of skipped_rows.
    storage_error: {mean, max} over rows of ||x - stored|| / ||x||; zero for float32.
    """

    task: str
    backbone: str
    modality: str
    store: str
    rows: int
    dim: int
    truncated_fraction: float | None
    seconds: float
    resumed_rows: int
    skipped_rows: int = 0
    skipped: Sequence[tuple[str, str]] = ()
    notes: tuple[str, ...] = ()
    feature_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, Any] | None = None
    autocast_error: Mapping[str, Any] | None = None
    store_dtype: str = "float32"
    storage_error: dict[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self, *, indent: int | None = None) -> str:
        """One JSON object; a value that is not finite becomes null."""
        return to_json(self, indent=indent)


@dataclass(frozen=True, kw_only=True)
class FitRecord:
    """A fitted head: what it is, what is proven about it, what was measured, and where it lies.

    beta is in the loss's own units and beta_max the smallest value at which the head is zero
    under the group penalty.
    primal, dual, relative_gap, cone_violation and pattern_violation are the certificate (the last
    two are None where the activation or the penalty has none); passes counts products with the
    data. Accuracies are fractions of 1, intervals 95% (low, high). seconds has the keys extract,
    fit, fit_compile (the part of fit that was compilation) and baseline. path lists the values of
    beta tried, each as {beta, validation_loss, standard_error (of that mean loss),
    difference_error (standard error of its difference from the lowest), validation_accuracy,
    relative_gap, passes, gate_norms (of every gate's weights), history}; history is the final
    solve's, each entry {passes, seconds, relative_gap}. feature_options, tokens, autocast_error
    and skipped are as in ExtractRecord. leaks is what the check for duplicates found
    (``LeakReport.as_record``), None where it was not made; n_train and n_validation do not count
    rows that --drop-leaks left out. Top-5 accuracies are None with fewer than 20 classes.
    left_out_classes: of rows that --classes did not name. Temperatures, of the head and of the
    linear probe, are None where nothing was calibrated.
    precision is that of the solver's products; precision_effect, None for float32, is what less did
    to the final solve: {precision, passes, believed_gap, relative_gap} at their end.
    """

    task: str
    backbone: str
    modality: str
    n_train: int
    n_validation: int
    n_test: int
    dim: int
    n_classes: int
    activation: str
    loss: str
    solver: str
    n_gates: int
    beta: float
    beta_max: float
    primal: float
    dual: float
    relative_gap: float
    cone_violation: float | None
    pattern_violation: float | None
    passes: int
    validation_accuracy: float
    test_accuracy: float
    test_accuracy_interval: tuple[float, float]
    test_macro_f1: float
    test_nll: float
    test_ece: float
    linear_probe_test_accuracy: float
    truncated_fraction: float | None
    seconds: Mapping[str, float]
    peak_rss_mb: float
    artefact: str
    store: str
    seed: int
    versions: Mapping[str, str]
    linear_probe_test_accuracy_interval: tuple[float, float]
    linear_probe_C: float
    calibration_temperature: float | None
    path: Sequence[Mapping[str, Any]]
    classes: tuple[str, ...]
    left_out_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = ""
    skipped_rows: int = 0
    skipped: Sequence[tuple[str, str]] = ()
    selection: str = "best"
    tolerance: float = float("nan")
    history: Sequence[Mapping[str, float]] = ()
    penalty: str = "group"
    feature_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, Any] | None = None
    autocast_error: Mapping[str, Any] | None = None
    leaks: Mapping[str, Any] | None = None
    test_top5_accuracy: float | None = None
    linear_probe_test_top5_accuracy: float | None = None
    linear_probe_temperature: float | None = None
    precision: str = "float32"
    precision_effect: Mapping[str, Any] | None = None
    class_weight: str = "none"

    def to_json(self, *, indent: int | None = None) -> str:
        """One JSON object; a value that is not finite becomes null."""
        return to_json(self, indent=indent)


@dataclass(frozen=True, kw_only=True)
class CompareRecord:
    """A finished comparison.

    rows: a line for every method of every backbone and training size, in the table's order:
    {method, backbone, shots, train_rows, seeds, test_accuracy (mean over seeds), standard_error and
    interval (95%, over seeds and test rows), validation_accuracy, test_macro_f1,
    test_balanced_accuracy, test_nll, test_ece, seconds_cold (of the first trial of a process),
    seconds_warm (without compiling), seconds (mean, as it was), peak_rss_mb, settings_tried,
    parameters, chosen (of the first seed), notes}.
    pairs: {backbone, shots, train_rows, first, second, difference, standard_error, interval,
    rows_p, rows_holm, mcnemar_p, mcnemar_holm, permutation_p, permutation_holm, better}; see
    `tasks.comparison.paired`.
    verdict: sentences for each backbone and training size, {backbone, shots, train_rows, text}.
    skipped: reason by method.
    several_labels: rows have any number of labels. Accuracy is then the share of rows whose whole
    set of labels is right, and `rows` have test_micro_f1 and test_average_precision in place of
    test_balanced_accuracy.
    trust: a line for each row of `rows` that has one, with its backbone, shots, train_rows and
    method, all means over seeds: {temperature, nll, ece, uncalibrated_nll, uncalibrated_ece,
    reliability and uncalibrated_reliability (bins), selective, noise, certified, and of the first
    seed path, tolerance and convergence}; see `tasks.comparison.reliability`.
    advice: {label_errors, confusion} of the first backbone; see `tasks.comparison.advice`.
    Duplicates are in `leaks`.
    """

    task: str
    modality: str
    backbones: tuple[str, ...]
    classes: tuple[str, ...]
    n_classes: int
    n_pool: int
    n_test: int
    validation_fraction: float
    calibrate: str
    seeds: tuple[int, ...]
    class_share: tuple[float, float]
    rows: Sequence[Mapping[str, Any]]
    pairs: Sequence[Mapping[str, Any]]
    verdict: Sequence[Mapping[str, Any]]
    skipped: Mapping[str, str]
    leaks: Mapping[str, Any] | None
    truncated_fraction: float | None
    seconds: Mapping[str, float]
    out: str
    report: str
    seed: int
    versions: Mapping[str, str]
    command: str
    notes: tuple[str, ...] = ()
    several_labels: bool = False
    trust: Sequence[Mapping[str, Any]] = ()
    advice: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def unbalanced(self) -> bool:
        """Whether the largest class of the test rows has over twice the rows of the smallest."""
        return self.class_share[1] > 2 * self.class_share[0]

    def to_json(self, *, indent: int | None = None) -> str:
        """One JSON object; a value that is not finite becomes null."""
        return to_json(self, indent=indent)


@dataclass(frozen=True, kw_only=True)
class RefitRecord:
    """A head solved again on its own rows and new ones.

    n: rows by split and origin (``train_before``, ``train_new``, ...). primal_before: the objective
    of all rows at the old weights, where the solve began; primal, dual and relative_gap: where it
    ended. test_accuracy: on the test rows of both; test_accuracy_before_rows: on those of the first
    fit, beside what the old head reaches on them. Rows of new data without splits are divided as
    `fit` does. None where there are no such rows. leaks: as of `fit`, of the rows of both, by their
    features. commands: of the first fit and every refit since.
    """

    artefact: str
    before: str
    data: str
    classes: tuple[str, ...]
    new_classes: tuple[str, ...]
    n: Mapping[str, int]
    activation: str
    loss: str
    beta: float
    primal_before: float
    primal: float
    dual: float
    relative_gap: float
    passes: int
    test_accuracy: float
    test_accuracy_interval: tuple[float, float]
    test_accuracy_before_rows: float | None
    test_accuracy_before_rows_old_head: float | None
    test_accuracy_new_rows: float | None
    calibration_temperature: float | None
    store: str
    new_store: str
    seconds: float
    seed: int
    leaks: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EvaluateRecord:
    """A head measured on n labelled rows.

    Every figure is followed by its 95% interval (low, high): Wilson's for the accuracy, else from
    1000 draws of rows. slices: the same figures for each value of the column `by`, with its name as
    "slice". classes_without_rows: those that these rows say nothing about. left_out_classes: of
    rows that were not measured, because --classes did not name them, or that of the head's fit.
    """

    artefact: str
    data: str
    split: str
    classes: tuple[str, ...]
    classes_without_rows: tuple[str, ...]
    left_out_classes: tuple[str, ...]
    n: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    macro_f1: float
    macro_f1_interval: tuple[float, float]
    balanced_accuracy: float
    balanced_accuracy_interval: tuple[float, float]
    nll: float
    nll_interval: tuple[float, float]
    ece: float
    ece_interval: tuple[float, float]
    by: str | None
    slices: Sequence[Mapping[str, Any]]
    skipped: Sequence[Mapping[str, str]]
    seconds: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """An exported head.

    inputs and outputs: names of the program's tensors, the batch first. max_difference: of its
    probabilities from the head's, measured on the written file. opset: of ONNX. beside: files that
    say how the inputs are made.
    """

    artefact: str
    out: str
    format: str
    with_backbone: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    classes: tuple[str, ...]
    opset: int | None
    max_difference: float
    bytes: int
    beside: tuple[str, ...] = ()


def to_json(record: Any, *, indent: int | None = None) -> str:
    """A dataclass, dict or list as strict JSON: numpy scalars as numbers, NaN and inf as null.

    >>> to_json({"gap": float("nan"), "path": ({"beta": 0.5},)})
    '{"gap": null, "path": [{"beta": 0.5}]}'
    """
    return json.dumps(_plain(record), indent=indent, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)  # a Path
