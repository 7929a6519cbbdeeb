"""How many wrong labels the data advice of `compare` finds.

5% of the labels of a real data set are changed to another class (drawn evenly, or with --confused
to the class that a head mistakes the row's class for most often), and the finder is asked which
they are. Its three forms: the neighbours alone, the head alone (cross-fitted at a beta chosen on
clean validation rows, as `compare` does it), and their weighted mean, which is what
`compare` reports.
Labels that were wrong before count as false alarms, so precision is a lower bound.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from shared import Row, parser, show

from convex_heads import ConvexHeadClassifier
from tasks.comparison.draws import folds
from tasks.comparison.label_errors import nearest_neighbours, suspects, together
from tasks.config import CompareConfig
from tasks.console import QuietReporter
from tasks.extraction import extract_features
from tasks.methods.convex import ADVICE_GAP


def cross_fitted(
    X: np.ndarray, y: np.ndarray, digests: list[bytes], C: int, beta: float, gap: float
) -> np.ndarray:
    p = np.full((len(y), C), np.nan)
    fold = folds(y, digests)
    for k in range(fold.max() + 1):
        held, rest = fold == k, (fold >= 0) & (fold != k)
        head = ConvexHeadClassifier(beta=beta, tolerance=gap).fit(X[rest], y[rest])
        p[held] = 0
        p[np.ix_(held, head.classes_)] = head.predict_proba(X[held])
    return p


def flipped(y: np.ndarray, share: float, C: int, p: np.ndarray | None, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    wrong = y.copy()
    rows = rng.choice(len(y), round(share * len(y)), replace=False)
    if p is None:
        wrong[rows] = (y[rows] + rng.integers(1, C, len(rows))) % C
    else:
        p = p[rows].copy()
        p[np.arange(len(rows)), y[rows]] = -1
        wrong[rows] = p.argmax(axis=1)
    return wrong


def main() -> None:
    given = parser(__doc__)
    given.add_argument("tasks", nargs="*", default=["trec6", "banking77", "wordnet6"])
    given.add_argument("--data-root", type=Path)
    given.add_argument("--cache-dir", type=Path)
    given.add_argument("--backbone")
    given.add_argument("--share", type=float, default=0.05)
    given.add_argument("--rows", type=int, default=None, help="train rows")
    given.add_argument("--gap", type=float, default=ADVICE_GAP, help="of the cross-fitted heads")
    given.add_argument("--confused", action="store_true", help="hard mistakes, not even ones")
    o = given.parse_args()
    rows: list[Row] = []
    for task in o.tasks:
        config = CompareConfig(
            data=task,
            backbone=o.backbone,
            data_root=o.data_root,
            cache_dir=o.cache_dir,
            train_rows=o.rows,
        )
        found = extract_features(config, QuietReporter())
        split = {"train": found.rows("train")}
        digests = found.digests(split)["train"]
        X, y = split["train"].features.astype(np.float32), split["train"].labels
        val = found.rows("validation")
        C = len(found.dataset.classes)
        beta = ConvexHeadClassifier().fit(X, y, X_val=val.features, y_val=val.labels).beta_
        hard = cross_fitted(X, y, digests, C, beta, o.gap) if o.confused else None
        wrong = flipped(y, o.share, C, hard, seed=0)
        is_wrong = wrong != y
        head = cross_fitted(X, wrong, digests, C, beta, o.gap)
        near = nearest_neighbours(X, wrong, C).shares
        print(f"{task} is done", file=sys.stderr, flush=True)
        for name, p in (("neighbours", near), ("head", head), ("both", together(near, head))):
            s = suspects(p, wrong)
            hits = is_wrong[s.rows]
            n = int(is_wrong.sum())
            rows.append(
                {
                    "data": task,
                    "rows": len(y),
                    "wrong": n,
                    "opinion": name,
                    "suspected": len(s.rows),
                    "precision": float(hits.mean()),
                    "recall": float(hits.sum() / n),
                    "P@50": float(hits[:50].mean()),
                    "P@100": float(hits[:100].mean()),
                    "P@wrong": float(hits[:n].sum() / n),
                }
            )
    show("Label errors found", rows, o)


if __name__ == "__main__":
    main()
