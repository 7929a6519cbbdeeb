"""The honest comparison: every method tuned on the same rows, each in a process of its own.

What is compared is settled first (`plan.py`), a method is fitted in its own process (`trial.py`),
and a finished trial is a line on disk (`ledger.py`). Tests (`paired.py`) and words (`verdict.py`)
come from the records alone, so that a report can be made again at any time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from extractors.errors import InputError
from extractors.manifest import installed_versions
from extractors.names import parse_name
from extractors.store import default_cache_dir
from tasks.comparison.advise import advise
from tasks.comparison.ledger import Ledger, check_folder, write_whole
from tasks.comparison.plan import Plan, about, all_trials, job_of, make_plan
from tasks.comparison.summary import summarise, trust_of
from tasks.comparison.trial import Rows
from tasks.comparison.trials import run_trials
from tasks.comparison.verdict import order
from tasks.config import CompareConfig
from tasks.config_files import as_command
from tasks.console import QuietReporter, Reporter
from tasks.data.load import Dataset
from tasks.methods import METHODS
from tasks.methods.settings import settings_of
from tasks.records import CompareRecord

_PACKAGES = ("convex-heads", "jax", "jaxlib", "scikit-learn", "faiss-cpu")


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
    began = time.perf_counter()
    if config.out is not None:
        check_folder(config.out)
    plan = make_plan(config, reporter)
    out = config.out or _default_out(config, plan)
    extracted = time.perf_counter() - began
    several = plan.dataset.targets is not None
    settings = {method: settings_of(method, several) for method in METHODS}
    with Ledger.open(out, about(config, plan), settings) as ledger:
        if ledger.outdated:
            methods = order(list({trial.method for trial in ledger.outdated}))
            titles = ", ".join(METHODS[method].title for method in methods)
            reporter.note(
                f"finished trials of {titles} are of other settings than are tried now: they are "
                "done again where they are asked for, and left out otherwise"
            )
        began = time.perf_counter()
        skipped = run_trials(
            ledger,
            all_trials(plan),
            dict(zip(plan.names, zip(plan.pools, plan.tests, strict=True), strict=True)),
            job_of(config, plan),
            reporter,
        )
        summary = _summarise(ledger, plan, skipped, reporter)
        seconds = {
            "extract": round(extracted, 3),
            "extract_all_runs": round(sum(f.extraction.store.seconds for f in plan.found), 3),
            "compare": round(time.perf_counter() - began, 3),
        }
        record = _record(config, plan, summary, skipped, out, seconds)
        with reporter.stage("report", total=None):
            _write(out, record, plan.dataset if config.embed_samples else None)
        return record


def _default_out(config: CompareConfig, plan: Plan) -> Path:
    folder = f"{plan.dataset.slug}-{parse_name(plan.names[0]).slug}"
    return (config.cache_dir or default_cache_dir()) / "comparisons" / folder


def _summarise(
    ledger: Ledger, plan: Plan, skipped: dict[str, str], reporter: Reporter
) -> dict[str, Any]:
    """Means, tests, words and advice, from what the trials have left on disk."""
    test = plan.tests[0]
    y = test.labels if test.targets is None else test.targets
    rows, pairs, words = summarise(ledger, y, plan.seeds, skipped, plan.sizes, plan.names)
    ledger.skip(skipped)
    if not rows:
        told = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise InputError(f"no method could be compared: {told}")
    with reporter.stage("advice", total=None):
        advice = advise(
            ledger,
            plan.found[0],
            plan.splits,
            (plan.pools[0], test),
            rows,
            plan.seeds,
            plan.adviser,
        )
    trust = [trust_of(ledger, row, plan.seeds) for row in rows]
    return {"rows": rows, "pairs": pairs, "verdict": words, "trust": trust, "advice": advice}


def _record(
    config: CompareConfig,
    plan: Plan,
    summary: Mapping[str, Any],
    skipped: Mapping[str, str],
    out: Path,
    seconds: Mapping[str, float],
) -> CompareRecord:
    dataset, test = plan.dataset, plan.tests[0]
    truncated = [each.truncated_fraction for each in plan.found]
    return CompareRecord(
        task=dataset.name,
        modality=dataset.modality,
        backbones=tuple(plan.names),
        classes=dataset.classes,
        n_classes=len(dataset.classes),
        n_pool=len(plan.pools[0].labels),
        n_test=len(test.labels),
        validation_fraction=round(plan.fraction, 4),
        calibrate=config.calibrate,
        seeds=plan.seeds,
        class_share=_class_share(test),
        several_labels=dataset.targets is not None,
        skipped=skipped,
        leaks=plan.leaks,
        truncated_fraction=max((t for t in truncated if t is not None), default=None),
        seconds=seconds,
        out=str(out),
        report=str(out / "report.html"),
        seed=config.seed,
        versions={name: version(name) for name in _PACKAGES} | installed_versions(),
        command=as_command("compare", config),
        notes=dataset.notes,
        **summary,
    )


def _class_share(test: Rows) -> tuple[float, float]:
    """Of the test rows, those of the rarest class and of the most frequent one."""
    if test.targets is None:
        _, counts = np.unique(test.labels, return_counts=True)
    else:
        counts = test.targets.sum(axis=0, dtype=np.int64)
    return float(counts.min() / len(test.labels)), float(counts.max() / len(test.labels))


def _write(out: Path, record: CompareRecord, shown: Dataset | None) -> None:
    """The record and both reports; rows of `shown` as they are, otherwise their ids alone."""
    from tasks.comparison.report import write_markdown, write_report

    write_whole(out / "summary.json", record.to_json(indent=1) + "\n")
    samples = None
    if shown is not None:
        from tasks.comparison.samples import Samples

        samples = Samples(shown)
    write_markdown(out, record)
    write_report(out, record, samples)
