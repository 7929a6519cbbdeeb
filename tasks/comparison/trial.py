"""One method on its rows in a process of its own, so that memory, clock and crash are its own.

Started by ``trials.py`` as ``python -m tasks.comparison.trial FOLDER``: the folder holds the rows
and the job. A JSON object for each finished trial goes to stdout. The process ends when its stdin
does, so that it never outlives the one that started it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convex_heads.decode import probabilities
from tasks.calibration import fit_temperature
from tasks.comparison.draws import draw, folds
from tasks.comparison.ledger import Trial, cross_fit_name, prediction_name, write_array
from tasks.memory import peak_rss_mb
from tasks.methods.base import Backbone, Fitted, Part, Problem

UNAVAILABLE, FAILED = "unavailable", "failed"


@dataclass(frozen=True)
class Rows:
    """Rows of the pool or of the test split, as a trial's process maps them into memory."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    digests: Sequence[bytes]
    texts: list[str] | None
    targets: NDArray[np.uint8] | None = None
    images: Sequence[bytes] | None = None
    min_spread: float = 0.0  # as of `Part`

    def write(self, folder: Path, name: str) -> None:
        """Write them for ``read``."""
        np.save(folder / f"{name}.npy", np.ascontiguousarray(self.features, np.float32))
        np.save(folder / f"{name}.labels.npy", self.labels.astype(np.int64))
        if self.targets is not None:
            np.save(folder / f"{name}.targets.npy", self.targets.astype(np.uint8))
        packed = b"".join(self.digests)
        (folder / f"{name}.digests").write_bytes(packed)
        if self.texts is not None:
            # ASCII, so that any string survives, halves of surrogate pairs too.
            (folder / f"{name}.texts.json").write_text(json.dumps(list(self.texts)), "ascii")
        if self.images is not None:
            sizes = np.array([len(image) for image in self.images], np.int64)
            np.save(folder / f"{name}.image_sizes.npy", sizes)
            with (folder / f"{name}.images").open("wb") as file:
                file.writelines(self.images)

    @classmethod
    def read(cls, folder: Path, name: str, min_spread: float) -> Rows:
        """Map them into memory."""
        packed = (folder / f"{name}.digests").read_bytes()
        texts, targets = folder / f"{name}.texts.json", folder / f"{name}.targets.npy"
        sizes, images = folder / f"{name}.image_sizes.npy", None
        if sizes.exists():
            ends = np.cumsum(np.load(sizes))
            whole = (folder / f"{name}.images").read_bytes()
            images = [whole[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        return cls(
            np.load(folder / f"{name}.npy", mmap_mode="r"),
            np.load(folder / f"{name}.labels.npy"),
            [packed[i : i + 32] for i in range(0, len(packed), 32)],
            json.loads(texts.read_text("ascii")) if texts.exists() else None,
            np.load(targets) if targets.exists() else None,
            images,
            min_spread,
        )

    def part(self, rows: NDArray[np.intp] | None = None) -> Part:
        """The rows of these numbers, in memory; None: all."""
        if rows is None:
            rows = np.arange(len(self.labels))
        texts = None if self.texts is None else [self.texts[i] for i in rows]
        targets = None if self.targets is None else self.targets[rows]
        images = None if self.images is None else [self.images[i] for i in rows]
        features = np.array(self.features[rows])
        return Part(features, self.labels[rows], texts, targets, images, self.min_spread)


def run(
    folder: Path, out: Path, trials: Sequence[Trial], job: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Fits every trial and yields its record, predictions already written."""
    from tasks.compile_clock import compile_clock
    from tasks.methods import load_method
    from tasks.methods.settings import settings_of

    pool, test = (Rows.read(folder, name, job["min_spread"]) for name in ("pool", "test"))
    several = pool.targets is not None
    fit = load_method(trials[0].method, several)
    asked = test.part()
    for number, trial in enumerate(trials):
        drawn = draw(
            pool.labels,
            pool.digests,
            trial.seed,
            fraction=job["fraction"],
            shots=trial.shots,
            train_rows=trial.train_rows,
        )
        train, validation = pool.part(drawn.train), pool.part(drawn.validation)
        problem = Problem(
            train,
            validation,
            job["n_classes"],
            trial.seed,
            job["options"],
            job.get("class_weight"),
            Backbone(trial.backbone, **job.get("backbone", {})),
            job.get("budget_seconds"),
        )
        with compile_clock() as compiling:
            began = time.perf_counter()
            fitted = fit(problem)
            seconds = time.perf_counter() - began
        began = time.perf_counter()
        p = fitted.predict_proba(asked)
        seconds_predict = time.perf_counter() - began
        judged = (_judge_sets if several else _judge)(fitted, p, asked, problem, job)
        p = judged.pop("p")
        name = prediction_name(trial)
        write_array(out / name, p)
        if job.get("cross_fit") == list(trial):
            _cross_fit(fitted, pool, out / cross_fit_name(trial), problem.n_classes)
        training = dict(fitted.training or {})
        yield {
            **trial._asdict(),
            "status": "done",
            **judged,
            "n_train": len(train),
            "n_validation": len(validation),
            "n_test": len(asked),
            "settings": settings_of(trial.method, several),
            "settings_tried": fitted.settings_tried,
            "chosen": fitted.chosen,
            "parameters": fitted.parameters,
            "notes": fitted.notes,
            "path": training.get("path"),
            "tolerance": training.get("tolerance"),
            "convergence": training.get("convergence"),
            "predictions": name,
            # The first trial of a process compiles what the others find compiled.
            "cold": number == 0,
            "seconds": round(seconds, 3),
            "seconds_warm": round(seconds - compiling.seconds, 3),
            "seconds_predict": round(seconds_predict, 3),
            "peak_rss_mb": peak_rss_mb(),
        }


def _judge(
    fitted: Fitted, p: NDArray[np.floating], test: Part, problem: Problem, job: Mapping[str, Any]
) -> dict[str, Any]:
    """What the record says of test probabilities p (n, C), and under "p" those that are kept."""
    from tasks.comparison.reliability import (
        bins,
        certified_accuracy,
        noise_accuracy,
        selective_accuracy,
    )
    from tasks.metrics import evaluate

    validation = problem.validation
    uncalibrated, temperature = p, None
    raw = evaluate(p, test.labels)
    chosen_by = fitted.predict_proba(validation)
    if job.get("calibrate"):
        temperature = fit_temperature(_log(chosen_by), "softmax", validation.labels)
        p = probabilities(_log(p), "softmax", temperature or 1.0)
    p = p.astype(np.float32)  # as they are kept
    measured, chose = evaluate(p, test.labels), evaluate(chosen_by, validation.labels)
    certified = None
    if fitted.certified_radius is not None:
        radius, most = fitted.certified_radius
        rows = np.linspace(0, len(test) - 1, max(1, min(most, len(test)))).astype(int)
        some = dataclasses.replace(
            test, features=test.features[rows], labels=test.labels[rows], texts=None
        )
        certified = certified_accuracy(radius(some), p[rows].argmax(axis=1) == some.labels)
    return {
        "p": p,
        "validation_accuracy": chose.accuracy,
        "test_accuracy": measured.accuracy,
        "test_macro_f1": measured.macro_f1,
        "test_top5_accuracy": measured.top5_accuracy,
        "test_balanced_accuracy": measured.balanced_accuracy,
        "test_nll": measured.nll,
        "test_ece": measured.ece,
        "temperature": temperature,
        "uncalibrated_nll": raw.nll,
        "uncalibrated_ece": raw.ece,
        "reliability": bins(p, test.labels),
        "uncalibrated_reliability": bins(uncalibrated, test.labels),
        "selective": selective_accuracy(p, test.labels),
        "noise": noise_accuracy(fitted.predict_proba, test, problem.train, problem.seed),
        "certified": certified,
    }


def _judge_sets(
    fitted: Fitted, p: NDArray[np.floating], test: Part, problem: Problem, job: Mapping[str, Any]
) -> dict[str, Any]:
    """The same for rows with several labels; accuracy is that of whole sets of labels."""
    from tasks.metrics import best_threshold, evaluate_sets

    chosen_by, Y_val = fitted.predict_proba(problem.validation), problem.targets(problem.validation)
    threshold = best_threshold(chosen_by, Y_val)
    p = p.astype(np.float32)
    measured = evaluate_sets(p, problem.targets(test), threshold)
    return {
        "p": p,
        "validation_accuracy": evaluate_sets(chosen_by, Y_val, threshold).exact,
        "test_accuracy": measured.exact,
        "test_micro_f1": measured.micro_f1,
        "test_macro_f1": measured.macro_f1,
        "test_average_precision": measured.average_precision,
        "test_nll": measured.nll,
        "test_ece": measured.ece,
        "threshold": threshold,
    }


def _cross_fit(fitted: Fitted, pool: Rows, path: Path, C: int) -> None:
    """Probabilities of pool rows by heads that were fitted without them; NaN where not asked."""
    if fitted.refit is None:
        return
    p = np.full((len(pool.labels), C), np.nan, np.float32)
    fold = folds(pool.labels, pool.digests)
    for k in range(fold.max() + 1):
        held = np.flatnonzero(fold == k)
        rest = np.flatnonzero((fold >= 0) & (fold != k))
        if len(held) and len(np.unique(pool.labels[rest])) > 1:
            p[held] = fitted.refit(pool.part(rest))(pool.part(held))
    write_array(path, p)


def _log(p: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.log(np.maximum(np.asarray(p, np.float64), 1e-12))


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main(folder: Path) -> None:
    """Do the job in the folder."""
    from extractors.errors import command_line
    from tasks.methods.base import Unavailable
    from tasks.records import to_json

    threading.Thread(target=_end_with_stdin, daemon=True).start()
    # What libraries print must not come between the records.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads((folder / "job.json").read_text("utf-8"))
    trials = [Trial(*fields) for fields in job["trials"]]

    def answer(found: Mapping[str, Any]) -> None:
        answers.write(to_json(found) + "\n")
        answers.flush()

    try:
        with command_line():  # who reads it is known where the answer is read
            for record in run(folder, Path(job["out"]), trials, job):
                answer({"record": record})
    except Unavailable as error:
        answer({UNAVAILABLE: str(error)})
    except MemoryError:
        answer({FAILED: "out of memory"})
    except Exception as error:
        full = "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "OutOfMemoryError"
        said = " ".join(str(error).split())
        answer({FAILED: "out of memory" if full else f"{type(error).__name__}: {said}"})
        if os.environ.get("CONVEX_HEADS_DEBUG"):
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
