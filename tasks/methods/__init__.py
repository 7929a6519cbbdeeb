"""The methods that `compare` knows, one file for each of them or for each family.

A method is a function ``fit(problem: Problem) -> Fitted`` (see ``base``); its file is imported when
it is asked for. To add one: a file, a line in METHODS.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from extractors.errors import InputError

if TYPE_CHECKING:
    from tasks.methods.base import Fitted, Problem

__all__ = [
    "METHODS",
    "SEVERAL_LABELS",
    "Method",
    "check_methods",
    "default_methods",
    "load_method",
]


class Method(NamedTuple):
    """Where a method is, and what it is in a few words.

    Attributes:
        home: module and function.
        title: for tables and sentences.
        about: model and tuning, in one line.
        default: whether it is compared when nobody names methods.
        text_only: whether it reads the texts themselves, and no features.
        trains_backbone: whether it is given the rows themselves and the backbone.
    """

    home: str
    title: str
    about: str
    default: bool = True
    text_only: bool = False
    trains_backbone: bool = False


METHODS = {
    "linear": Method(
        "tasks.methods.linear:fit",
        "linear probe",
        "multinomial logistic regression, warm-started path of 12 values of C",
    ),
    "convex": Method(
        "tasks.methods.convex:fit", "convex head", "certified gated ReLU head at its defaults"
    ),
    "ridge": Method(
        "tasks.methods.ridge:fit", "ridge", "least squares on one-hot targets, 16 penalties"
    ),
    "knn": Method(
        "tasks.methods.knn:fit", "kNN", "cosine neighbours, k and temperature over 56 settings"
    ),
    "svm": Method(
        "tasks.methods.svm:fit",
        "RBF-SVM",
        "RBF kernel, C and gamma over 16 settings; of many rows, Nyström features and a least"
        " squares SVM over 48",
    ),
    "mlp": Method(
        "tasks.methods.mlp:fit",
        "MLP",
        "256 ReLU units, AdamW, cosine schedule, 20 settings, early stopping",
    ),
    "ntk": Method(
        "tasks.methods.convex:fit_ntk", "gated ridge", "the head's gates, squared loss, ridge path"
    ),
    "relu": Method(
        "tasks.methods.convex:fit_relu",
        "ReLU head",
        "the head with ReLU neurons, its own path",
        default=False,  # ten times as slow as the gated head, and seldom better
    ),
    "cronos": Method(
        "tasks.methods.cronos:fit",
        "CRONOS",
        "the published ADMM recipe, squared loss, steps and beta on validation",
    ),
    "tfidf": Method(
        "tasks.methods.tfidf:fit",
        "TF-IDF",
        "words and pairs of words, logistic regression, 12 values of C; no backbone",
        text_only=True,
    ),
    "tabicl": Method(
        "tasks.methods.tabular:fit_tabicl", "TabICL", "in-context table model", default=False
    ),
    "tabpfn": Method(
        "tasks.methods.tabular:fit_tabpfn", "TabPFN", "in-context table model", default=False
    ),
    "cronos-am": Method(
        "tasks.methods.backbones:fit_cronos_am",
        "CRONOS-AM",
        "the convex head and the top two blocks in turn, rate from a range test",
        default=False,
        trains_backbone=True,
    ),
    "lora": Method(
        "tasks.methods.backbones:fit_lora",
        "LoRA",
        "rank 8 in all blocks, linear head, 3 epochs, 3 learning rates",
        default=False,
        trains_backbone=True,
    ),
    "finetune": Method(
        "tasks.methods.backbones:fit_finetune",
        "fine-tuning",
        "all blocks, linear head, AdamW, 3 epochs, 3 learning rates",
        default=False,
        trains_backbone=True,
    ),
    "setfit": Method(
        "tasks.methods.contrastive:fit",
        "SetFit",
        "contrastive fine-tuning of a sentence encoder",
        default=False,
        trains_backbone=True,
    ),
}


def default_methods(modality: str, several_labels: bool = False) -> tuple[str, ...]:
    """Those that are compared when nobody names any, in the order of the table.

    >>> "tfidf" in default_methods("text"), "tfidf" in default_methods("image")
    (True, False)
    """
    return tuple(
        name
        for name, method in METHODS.items()
        if method.default
        and (modality == "text" or not method.text_only)
        and (not several_labels or name in SEVERAL_LABELS)
    )


def check_methods(names: Sequence[str]) -> None:
    """Refuse a name that is no method, with the nearest one.

    >>> check_methods(["linaer"])
    Traceback (most recent call last):
    extractors.errors.InputError: methods linaer: there is no such method; did you mean 'linear'?
    """
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(METHODS)}"
            raise InputError(f"--methods {name}: there is no such method; {hint}")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError(f"--methods names {twice[0]} twice")


# For rows with several labels, those methods that have a form for them, and what it is.
SEVERAL_LABELS = {
    "linear": "logistic regression for each label, its C by its own validation NLL among 12",
    "convex": "certified gated ReLU head, logistic outputs over shared gates, one penalty on each"
    " gate's weights for all labels",
    "ridge": "least squares for all labels, 16 penalties, a logistic curve for each label",
    "knn": "shares of the labels among cosine neighbours, k and scaling over 14 settings",
    "svm": "least squares SVM for all labels, RBF kernel (of many rows, Nyström features), 48"
    " settings, a logistic curve for each label",
    "mlp": "256 ReLU units, a logistic output for each label, AdamW, cosine schedule, 20 settings,"
    " early stopping",
    "tfidf": "words and pairs of words, logistic regression for each label; no backbone",
}
_SEVERAL_HOMES = {"mlp": "tasks.methods.mlp:fit_several", "svm": "tasks.methods.svm:fit_several"}


def load_method(name: str, several_labels: bool = False) -> Callable[[Problem], Fitted]:
    """The method's fit, or that for rows with several labels; its libraries are imported here.

    Raises:
        Unavailable: the method takes one label a row only.
    """
    home = METHODS[name].home
    if several_labels:
        if name not in SEVERAL_LABELS:
            from tasks.methods.base import Unavailable

            raise Unavailable("it takes one label a row, and these rows have several")
        home = _SEVERAL_HOMES.get(name, f"tasks.methods.multilabel:fit_{name}")
    module, function = home.split(":")
    return getattr(importlib.import_module(module), function)
