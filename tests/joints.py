"""Joint problems of CRONOS-AM on small random backbones of every family."""

from __future__ import annotations

import importlib.util
import itertools
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from tiny_models import CORPUS, TIMM

from convex_heads import ConvexHeadClassifier
from extractors import load_extractor
from extractors.blocks import CutBackbone
from tasks.cronos_am.activations import cached_rows
from tasks.cronos_am.alternate import Joint

TEXTS = ("bert", "roberta", "gpt2", "llama")
IMAGES = ("vit", "clip", "convnext")
FAMILIES = (*TEXTS, "sentence", *IMAGES, *TIMM)
QUICK = ("bert", "gpt2", "vit", "mobilenetv3_small_050")  # one of each kind; the others are slow
ROWS = 48


def rows(family: str, n: int = ROWS, seed: int = 0) -> tuple[list, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    if family in (*IMAGES, *TIMM):
        found = rng.integers(0, 200, (n, 32, 32, 3), dtype=np.uint8)
        found[:, 8:16] += (50 * labels[:, None, None, None]).astype(np.uint8)
        return list(found), labels
    words = " ".join(CORPUS).replace(";", "").replace(",", "").split()
    texts = []
    for label in labels:
        chosen = list(rng.choice(words, rng.integers(3, 9)))
        texts.append(" ".join([*chosen, "wonderful" if label else "dull"][:: rng.choice([1, -1])]))
    return texts, labels


def joint(family: str, name: str, k: int = 1, **head) -> Joint:
    inputs, labels = rows(family)
    more, more_labels = rows(family, 16, seed=1)
    cut = CutBackbone(load_extractor(name, device="cpu"), k, inputs[:3])

    def fit_head(X, X_val):
        options = {"n_gates": 3, "beta": 0.05, "tolerance": 1e-2} | head
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return ConvexHeadClassifier(**options).fit(X, labels, X_val=X_val, y_val=more_labels)

    return Joint(
        cut,
        cached_rows(cut, inputs, labels, None),
        cached_rows(cut, more, more_labels, None),
        2,
        fit_head,
    )


def needs_peft() -> None:
    """Skips a test of LoRA where peft is not installed."""
    # (Importing it here would import torchvision before the backbones' adapters have looked at it.)
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed: extra `finetune`")


def never_rises(history: list[dict]) -> bool:
    objectives = [line["objective"] for line in history]
    return all(after <= before for before, after in itertools.pairwise(objectives))
