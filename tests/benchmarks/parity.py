"""Do torch, torch.export and ONNX compute what the head does, for all kinds of heads and backbones?

Heads are fitted on real features: of wordnet6 through MiniLM, of hymenoptera through the timm
models of --models. For each backbone the gated and the ReLU head, with the softmax, the logistic
(two classes) and the squared loss. Differences are the largest over all test rows; a gated head
jumps at its gates, and rows within float32 round-off of a gate are counted and left out.

    python tests/benchmarks/parity.py --models DIR [--backbones NAME ...]
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from shared import Row, parser, show

from convex_heads import ConvexHeadClassifier
from convex_heads.decode import Network
from extractors.graph import backbone_graph
from tasks.artefact import Head
from tasks.config import ExtractConfig
from tasks.console import QuietReporter
from tasks.export import export_head
from tasks.extraction import Extracted, extract_features

BACKBONES = {
    "minilm": ("wordnet6", "minilm"),
    "mobilenetv2_100": ("hymenoptera", "timm:local-dir:{models}/timm_mobilenetv2_100"),
    "mobilenetv3_small": ("hymenoptera", "timm:local-dir:{models}/timm_tf_mobilenetv3_small_100"),
}
# Sums of d float32 products are known to about sqrt(d) units in the last place.
_ULPS = 4


def main() -> None:
    """Runs and prints the tables."""
    made = parser(__doc__)
    made.add_argument("--models", type=Path, required=True, help="folder of the timm backbones")
    made.add_argument("--backbones", nargs="+", choices=tuple(BACKBONES), default=list(BACKBONES))
    made.add_argument("--data-root", type=Path)
    made.add_argument("--cache-dir", type=Path)
    made.add_argument("--train-rows", type=int, default=2000)
    made.add_argument("--test-rows", type=int, default=2000)
    options = made.parse_args()
    warnings.simplefilter("ignore")
    heads: list[Row] = []
    whole: list[Row] = []
    for name in options.backbones:
        data, backbone = BACKBONES[name]
        small = {"train_rows": options.train_rows, "test_rows": options.test_rows}
        config = ExtractConfig(
            data=data,
            backbone=backbone.format(models=options.models.resolve()),
            data_root=options.data_root,
            cache_dir=options.cache_dir,
            device="cpu",
            **(small if data == "wordnet6" else {}),
        )
        found = extract_features(config, QuietReporter())
        head = None
        for activation in ("gated_relu", "relu"):
            for loss in ("softmax", "logistic", "squared"):
                head, row = one_head(found, activation, loss)
                heads.append({"backbone": name, "head": activation, "loss": loss, **row})
                if activation == "gated_relu" and loss == "softmax":
                    whole.append({"backbone": name, **with_backbone(found, head)})
    show("Heads alone, all test rows: largest difference from the head", heads, options)
    show("Backbone and head, probabilities of real rows", whole, options)


def one_head(found: Extracted, activation: str, loss: str) -> tuple[Head, Row]:
    """A head fitted with one activation and loss, and how closely the others follow it."""
    train, test = found.rows("train"), found.rows("test")
    classes = found.dataset.classes
    labels = train.labels
    if loss == "logistic" and len(classes) > 2:
        labels, classes = (labels == 0).astype(int), ("other", classes[0])
    fitted = ConvexHeadClassifier(
        activation=activation, loss=loss, beta=0.03, n_gates=16, tolerance=0.05, max_seconds=20
    ).fit(train.features, labels)
    head = Head(fitted.network_, tuple(classes), 1.3)
    X = np.asarray(test.features)
    clear = ~near_a_gate(head, X)
    module = head.to_torch()
    with torch.no_grad():
        scores = module.scores(torch.from_numpy(X)).numpy()
        p = module.probabilities(torch.from_numpy(X)).numpy()
    expected, expected_p = head.network.scores(X), head.predict_proba(X)
    largest = np.maximum(1, np.abs(expected).max(axis=1, keepdims=True))
    row: Row = {
        "rows": len(X),
        "near a gate": int((~clear).sum()),
        "torch, scores": float((np.abs(scores - expected) / largest)[clear].max()),
        "torch, probabilities": float(np.abs(p - expected_p)[clear].max()),
    }
    with tempfile.TemporaryDirectory() as folder:
        for fmt, suffix in (("torch", "pt2"), ("onnx", "onnx")):
            path = Path(folder) / f"head.{suffix}"
            export_head(head, path, format=fmt, rows=list(X[:8]))
            row["export" if fmt == "torch" else "onnx"] = float(
                np.abs(answers(path, fmt, {"features": X}) - expected_p)[clear].max()
            )
    return head, row


def near_a_gate(head: Head, X: np.ndarray) -> np.ndarray:
    """Rows (n,) bool with a gate whose sign float32 cannot tell."""
    if not isinstance(head.network, Network) or not len(head.network.gates):
        return np.zeros(len(X), bool)
    exact = head.network.astype(np.float64)
    rows = exact.scaling.transform(X.astype(np.float64))
    size = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(exact.gates, axis=1)
    bound = _ULPS * np.finfo(np.float32).eps * size
    return (np.abs(rows @ exact.gates.T) < bound).any(axis=1)


def with_backbone(found: Extracted, head: Head) -> Row:
    """The exported programs from tokens or pixels on real rows, against store and head."""
    graph = backbone_graph(found.extractor)
    split = found.dataset.splits["test"]
    rows = list(split.inputs[:48])
    features = found.extraction.store.read("test", list(split.ids[:48])).features
    expected = head.predict_proba(np.asarray(features))
    row: Row = {"rows": len(rows)}
    with tempfile.TemporaryDirectory() as folder:
        for fmt, suffix in (("torch", "pt2"), ("onnx", "onnx")):
            path = Path(folder) / f"whole.{suffix}"
            began = time.perf_counter()
            export_head(head, path, format=fmt, graph=graph, rows=rows[:8])
            seconds = time.perf_counter() - began
            worst = 0.0
            for start in range(0, len(rows), 16):
                inputs = graph.inputs(rows[start : start + 16])
                given = {
                    name: tensor.numpy() for name, tensor in zip(graph.names, inputs, strict=True)
                }
                p = answers(path, fmt, given)
                worst = max(worst, float(np.abs(p - expected[start : start + 16]).max()))
            what = "export" if fmt == "torch" else "onnx"
            row |= {what: worst, f"{what}, MB": path.stat().st_size / 1e6, f"{what}, s": seconds}
    return row


def answers(path: Path, fmt: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Probabilities that a file computes."""
    if fmt == "torch":
        module = torch.export.load(path).module()
        with torch.no_grad():
            return module(*(torch.from_numpy(value) for value in inputs.values()))[1].numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["probabilities"], inputs)[0])


if __name__ == "__main__":
    main()
