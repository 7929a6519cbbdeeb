"""The honest comparison: every method tuned on the same rows, each in a process of its own.

Rows are extracted once; for every seed the training and validation rows are drawn anew from all
rows that are not test rows (`tasks.draws`), a method is fitted in its own process (`tasks.trial`),
and a finished trial is a line on disk (`tasks.ledger`). Tests (`tasks.paired`) and words
(`tasks.verdict`) come from the records alone, so that a report can be made again at any time.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from extractors.errors import InputError
from extractors.manifest import installed_versions
from extractors.names import parse_name
from extractors.store import default_cache_dir
from tasks.advise import advise
from tasks.comparison_rows import common_rows, trial_rows, without_leaks
from tasks.config import CompareConfig
from tasks.config_files import as_command
from tasks.console import QuietReporter, Reporter
from tasks.draws import curve_sizes, draw
from tasks.extraction import Extracted, extract_features
from tasks.ledger import Ledger, Trial, write_whole
from tasks.methods import METHODS, default_methods
from tasks.records import CompareRecord
from tasks.summary import summarise, trust_of
from tasks.trials import run_trials
from tasks.verdict import order

_PACKAGES = ("convex-heads", "jax", "jaxlib", "scikit-learn", "faiss-cpu")
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


def compare(
    data: str,
    *,
    backbone: str | Sequence[str] | None = None,
    methods: Sequence[str] = (),
    seeds: int = 5,
    shots: Sequence[int] = (),
    curve: bool = False,
    embed_samples: bool = False,
    out: str | Path | None = None,
    classes: Sequence[str] = (),
    train_rows: int | None = None,
    test_rows: int | None = None,
    data_root: str | Path | None = None,
    cache_dir: str | Path | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> CompareRecord:
    """Compares heads on frozen features of one data set, and says what is worth its time.

    Args:
        data: task name, path, or ``hub:owner/name[:config]``.
        backbone: one or several; None: the default for the data.
        methods: names of :data:`tasks.methods.METHODS`; none: those that fit the data.
        seeds: how many draws of training and validation rows, gates and first weights.
        shots: few-shot comparisons with so many training rows of every class.
        curve: learning curves over train size.
        embed_samples: show rows in the report: texts or thumbnails, from the data.
        out: folder for records and report; what is finished there is not done again.
        classes: take rows of these classes alone; none: of all.
        train_rows: so many rows to train and choose; None: all.
        test_rows: so many test rows; None: all.
        data_root: where named tasks lie.
        cache_dir: where feature stores lie.
        seed: the first one.
        reporter: hears of progress.

    Raises:
        InputError: options, data, backbone or folder that cannot be used.
        MachineError: disk, memory or network.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "digits"
        >>> found = compare("digits", backbone="toy:image-16", methods=("linear", "ridge"),
        ...                 seeds=2, out=out, train_rows=200, test_rows=100)
        >>> [row["method"] for row in found.rows], (out / "report.html").exists()
        (['linear', 'ridge'], True)
    """
    config = CompareConfig(
        data=data,
        backbone=backbone if backbone is None or isinstance(backbone, str) else tuple(backbone),
        methods=tuple(methods),
        seeds=seeds,
        shots=tuple(shots),
        curve=curve,
        embed_samples=embed_samples,
        out=None if out is None else Path(out),
        classes=tuple(classes),
        train_rows=train_rows,
        test_rows=test_rows,
        data_root=None if data_root is None else Path(data_root),
        cache_dir=None if cache_dir is None else Path(cache_dir),
        seed=seed,
    )
    return run_compare(config, reporter=reporter or QuietReporter())


def run_compare(config: CompareConfig, *, reporter: Reporter) -> CompareRecord:
    """As `compare`, with all options."""
    from tasks.comparison_report import write_markdown, write_report

    began = time.perf_counter()
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
    several = dataset.targets is not None
    methods = order(config.methods or default_methods(dataset.modality, several))
    trained = any(METHODS[method].trains_backbone for method in methods)
    pools, tests = trial_rows(found[0], splits, raw=trained)
    labels = pools[0].labels
    given = (len(splits[0]["train"].ids), len(splits[0]["validation"].ids))
    fraction = min(_MOST_VALIDATION, given[1] / sum(given))
    sizes = _sizes(config, labels, pools[0].digests, fraction, len(dataset.classes))
    seeds = tuple(range(config.seed, config.seed + config.seeds))
    out = config.out
    if out is None:
        folder = f"{Path(dataset.name).stem}-{parse_name(names[0]).slug}"
        out = (config.cache_dir or default_cache_dir()) / "comparisons" / folder
    extracted = time.perf_counter() - began
    with Ledger.open(out, _about(config, found, fraction)) as ledger:
        began = time.perf_counter()
        adviser = next(
            (Trial(m, names[0], *sizes[-1], seeds[0]) for m in _ADVISERS if m in methods), None
        )
        skipped = run_trials(
            ledger,
            {
                name: [
                    Trial(method, name, shots, rows, seed)
                    for method in methods
                    # Words are the same beside every backbone: once is enough.
                    if name == names[0] or not METHODS[method].text_only
                    for shots, rows in sizes
                    for seed in seeds
                ]
                for name in names
            },
            dict(zip(names, zip(pools, tests, strict=True), strict=True)),
            {
                "fraction": fraction,
                "n_classes": len(dataset.classes),
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
            },
            reporter,
        )
        sets = tests[0].targets
        if sets is None:
            _, counts = np.unique(tests[0].labels, return_counts=True)
        else:
            counts = sets.sum(axis=0, dtype=np.int64)
        truncated = [each.truncated_fraction for each in found]
        rows, pairs, words = summarise(
            ledger, tests[0].labels if sets is None else sets, seeds, skipped, sizes, names
        )
        ledger.skip(skipped)
        if not rows:
            told = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
            raise InputError(f"no method could be compared: {told}")
        with reporter.stage("advice", total=None):
            advice = advise(ledger, found[0], splits[0], (pools[0], tests[0]), rows, seeds, adviser)
        record = CompareRecord(
            task=dataset.name,
            modality=dataset.modality,
            backbones=tuple(names),
            classes=dataset.classes,
            n_classes=len(dataset.classes),
            n_pool=len(labels),
            n_test=len(tests[0].labels),
            validation_fraction=round(fraction, 4),
            calibrate=config.calibrate,
            seeds=seeds,
            class_share=(
                float(counts.min() / len(tests[0].labels)),
                float(counts.max() / len(tests[0].labels)),
            ),
            several_labels=several,
            rows=rows,
            pairs=pairs,
            verdict=words,
            skipped=skipped,
            leaks=leaks,
            trust=[trust_of(ledger, row, seeds) for row in rows],
            advice=advice,
            truncated_fraction=max((t for t in truncated if t is not None), default=None),
            seconds={
                "extract": round(extracted, 3),
                "extract_all_runs": round(sum(f.extraction.store.seconds for f in found), 3),
                "compare": round(time.perf_counter() - began, 3),
            },
            out=str(out),
            report=str(out / "report.html"),
            seed=config.seed,
            versions={name: version(name) for name in _PACKAGES} | installed_versions(),
            command=as_command("compare", config),
            notes=dataset.notes,
        )
        with reporter.stage("report", total=None):
            write_whole(out / "summary.json", record.to_json(indent=1) + "\n")
            samples = None
            if config.embed_samples:
                from tasks.samples import Samples

                samples = Samples(dataset)
            write_markdown(out, record)
            write_report(out, record, samples)
        return record


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


def _about(config: CompareConfig, found: Sequence[Extracted], fraction: float) -> dict[str, Any]:
    """What makes two comparisons different ones."""
    return {
        "data": found[0].dataset.fingerprint,
        "backbones": {each.extractor.name: each.extractor.fingerprint() for each in found},
        "store dtype": config.stored_as,
        "train rows": config.train_rows,
        "test rows": config.test_rows,
        "seed of the rows": config.seed if config.train_rows or config.test_rows else None,
        "validation fraction": fraction,
        "duplicates left out": config.drop_leaks,
        "calibration": config.calibrate,
        "head": _head_options(config),
        "class weight": config.class_weight,
        **({} if config.budget_seconds is None else {"budget seconds": config.budget_seconds}),
    }
