"""Vectors of length 1: whatever their size, as arrays, as tensors, and within exported graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CORPUS, save_backbone

from extractors import load_extractor
from extractors.graph import backbone_graph
from extractors.options import FeatureOptions
from extractors.unit_length import unit_length, unit_rows

SIZES = (0.0, 1e-44, 1e-30, 1e-16, 1e-3, 1.0, 1e5, 1e20, 3e38)


def rows() -> np.ndarray:
    directions = np.random.default_rng(0).uniform(-1, 1, (len(SIZES), 7))
    return (directions * np.array(SIZES)[:, None]).astype(np.float32)


def test_every_row_but_zeros_has_length_one() -> None:
    found, exact = unit_length(rows()), rows().astype(np.float64)
    length = np.linalg.norm(exact, axis=1, keepdims=True)
    expected = exact / np.where(length > 0, length, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(unit_rows(torch.from_numpy(rows())), found, rtol=1e-6)
    assert found.dtype == np.float32


def test_rows_of_ordinary_size_are_what_they_always_were() -> None:
    """Bit by bit: stores that are there stay valid."""
    ordinary = np.random.default_rng(1).normal(size=(50, 384)).astype(np.float32)
    plain = ordinary / np.linalg.norm(ordinary, axis=1, keepdims=True)
    np.testing.assert_array_equal(unit_length(ordinary), plain)
    both = np.vstack([ordinary, np.full((1, 384), 1e30, np.float32)])
    np.testing.assert_array_equal(unit_length(both)[:-1], plain)


def test_gradients_are_those_of_the_quotient() -> None:
    values = torch.from_numpy(rows()[3:8]).requires_grad_(True)  # 1e-16 to 1e20
    weights = torch.linspace(-1, 2, 7)
    (unit_rows(values) @ weights).sum().backward()
    x = rows()[3:8].astype(np.float64)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    unit, w = x / length, weights.numpy().astype(np.float64)
    expected = (w - unit * (unit @ w)[:, None]) / length
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert values.grad is not None
    np.testing.assert_allclose(values.grad.numpy() / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("kind", ["sentence", "bert", "vit", "mobilenetv3_small_050"])
@pytest.mark.parametrize("normalize", [None, "l2"])
def test_a_graph_is_the_adapters_features(kind: str, normalize: str | None, tmp_path: Path) -> None:
    options = FeatureOptions(normalize=normalize)  # type: ignore[arg-type]
    extractor = load_extractor(save_backbone(kind, tmp_path), device="cpu", options=options)
    inputs = list(CORPUS)
    if extractor.modality == "image":
        pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
        inputs = list(pixels)
    graph = backbone_graph(extractor)
    given = graph.inputs(inputs)
    expected = extractor.encode([extractor.prepare(row) for row in inputs])
    with torch.no_grad():
        found = graph.module(*given)
        exported = torch.export.export(graph.module, given).module()(*given)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6 * np.abs(expected).max())
    np.testing.assert_allclose(exported.numpy(), expected, atol=2e-6 * np.abs(expected).max())
