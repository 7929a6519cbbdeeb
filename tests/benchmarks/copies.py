"""How many labels of a head change when its features are copies in fewer digits.

    convex-heads extract trec6 --backbone minilm --data-root DIR    # names the store that it writes
    python tests/benchmarks/copies.py STORE [STORE ...]

For each store a head is fitted on the train rows as they are, once with every column that is not
constant and once without those that are all but zero beside the others (`tasks/standardise.py`),
over seeds. Then the test rows are labelled from copies: float16; int8 with a scale per row; uint8
between the least and the largest entry of the train rows, as vector stores have it. Means over
seeds.
"""

from __future__ import annotations

import numpy as np
from shared import Row, parser, show

from convex_heads import ConvexHeadClassifier
from extractors.codec import decode_features, encode_features
from extractors.store import FeatureStore
from tasks.standardise import MIN_SPREAD


def copies(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Test rows (m, d) by way of each form."""
    low, high = train.min(), train.max()
    steps = np.round((np.clip(test, low, high) - low) / (high - low) * 255)
    found = {"uint8": (low + steps / 255 * (high - low)).astype(np.float32)}
    for name in ("float16", "int8"):
        stored = encode_features(test, name, list(map(str, range(len(test)))))
        found[name] = decode_features(stored.values, stored.scale)
    return found


def measured(path: str, min_spread: float, seeds: int) -> Row:
    """One line of the table."""
    store = FeatureStore.open(path)
    X, y = store.source("train")[:], store.labels("train")
    X_test, y_test = store.source("test")[:], store.labels("test")
    others = copies(X, X_test)
    kept, accuracies, changed = 0, [], {name: [] for name in others}
    for seed in range(seeds):
        head = ConvexHeadClassifier(min_spread=min_spread, random_state=seed).fit(X, y)
        labels, kept = head.predict(X_test), int(head.network_.scaling.keep.sum())
        accuracies.append(100 * np.mean(labels == y_test))
        for name, other in others.items():
            changed[name].append(100 * np.mean(head.predict(other) != labels))
    return {
        "data": store.manifest.task,
        "columns": f"{kept} of {X.shape[1]}",
        "test rows": len(y_test),
        "accuracy, %": round(float(np.mean(accuracies)), 2),
        **{f"{name}, % changed": round(float(np.mean(c)), 2) for name, c in changed.items()},
    }


def main() -> None:
    """Measures every store with and without the small columns."""
    command = parser(__doc__)
    command.add_argument("stores", nargs="+", metavar="STORE", help="folder of a feature store")
    command.add_argument("--seeds", type=int, default=5, help="of the gates")
    options = command.parse_args()
    rows = [
        measured(path, min_spread, options.seeds)
        for path in options.stores
        for min_spread in (0.0, MIN_SPREAD)
    ]
    show("labels that change on copies of the features", rows, options)


if __name__ == "__main__":
    main()
