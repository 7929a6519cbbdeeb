"""What every method of `compare` tries, in one place and without its libraries.

A record of a comparison says it, so that a row that other settings made is told from one of these:
it is not taken as done (`tasks.comparison.ledger`). Of the convex head only the defaults are here:
its options are given by the person who compares, and a part of what the comparison is about.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.standardise import MIN_SPREAD


def _geometric(first: float, last: float, n: int) -> list[float]:
    return np.geomspace(first, last, n).tolist()


_NEIGHBOURS = [1, 3, 5, 10, 20, 50, 100]
# C times the number of features. Standardised rows have a squared norm of about d, so the useful
# values of C scale like 1/d; the best one of every named task lies well inside this range. The path
# ends where `patience` values in turn were no better, after `fewest` of them.
_LINEAR = {"C_times_d": _geometric(0.03, 300.0, 12), "fewest": 8, "patience": 3}
# Of the mean eigenvalue, which is 1 for standardised features. Largest first: ties go to it.
_RIDGE = {"penalties": _geometric(1e2, 1e-5, 16)}
_SVM = {
    "C": [1.0, 3.0, 10.0, 30.0],
    "gammas": [0.1, 0.3, 0.6, 1.2],  # divided by d: standardised rows are sqrt(2 d) apart
    "exact_rows": 6000,
    "landmarks": 2048,
    "penalties": _geometric(1e-1, 1e-8, 12),
}
_MLP = {
    "width": 256,
    "rates": [3e-4, 1e-3, 3e-3, 1e-2],
    "decays": [10.0, 3.0, 1.0, 0.1, 1e-3],  # decoupled: multiplied by the rate in every step
    "epochs": 30,
    "patience": 4,
}
_TFIDF = {"C": _geometric(0.1, 300.0, 12), "fewest": 8, "patience": 3, "most_terms": 200_000}
# Of every rate; and at most, where a budget leaves time for a longer run at the best one.
_EPOCHS, _LONGEST = 3.0, 20.0

SETTINGS: dict[str, dict[str, Any]] = {
    "linear": _LINEAR,
    "convex": {
        "penalty": "ridge",
        "most_gates": 256,
        "betas": [10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003],
        "begin": 1.0,
    },
    "ridge": _RIDGE,
    # The last temperature weighs all neighbours about alike.
    "knn": {"neighbours": _NEIGHBOURS, "temperatures": [0.02, 0.07, 0.2, 2.0]},
    "svm": _SVM,
    "mlp": _MLP,
    # As many gates, and the same fractions of beta_max, as the head has with the group penalty.
    "ntk": {
        "most_gates": 64,
        "rows_per_gate": 8,
        "betas": [0.1, 0.055, 0.03, 0.017, 0.01, 0.0055, 0.003, 0.0017, 0.001],
    },
    "relu": {},
    # Fractions of beta_max; the largest first, ties go to it.
    "cronos": {"gates": 16, "steps": 10, "betas": [1e-1, 1e-2, 1e-3]},
    "tfidf": _TFIDF,
    "tabicl": {},
    "tabpfn": {},
    "cronos-am": {"unfreeze": 2, "rounds": 6, "penalty": "group"},
    "lora": {"rank": 8, "epochs": _EPOCHS, "longest": _LONGEST, "rates": [1e-4, 5e-4, 2e-3]},
    # Of texts; the small convolutional networks among image backbones want larger rates.
    "finetune": {
        "epochs": _EPOCHS,
        "longest": _LONGEST,
        "rates": [2e-5, 5e-5, 1e-4],
        "image_rates": [1e-4, 3e-4, 1e-3],
    },
    "setfit": {"steps": 500, "batch": 16, "rate": 2e-5},
}
# For rows with several labels, where it is not the same.
_SEVERAL: dict[str, dict[str, Any]] = {
    "knn": {"neighbours": _NEIGHBOURS},
    "convex": {"penalty": "group"},
}
_ALL_COLUMNS = ("tfidf", "tabicl", "tabpfn", "setfit")  # or none: they standardise nothing


def settings_of(method: str, several_labels: bool = False) -> dict[str, Any]:
    """What a method tries, and which columns of a backbone it leaves out; JSON-able.

    >>> settings_of("lora")["rates"]
    [0.0001, 0.0005, 0.002]
    """
    of = _SEVERAL.get(method, SETTINGS[method]) if several_labels else SETTINGS[method]
    return dict(of) if method in _ALL_COLUMNS else {**of, "min_spread": MIN_SPREAD}
