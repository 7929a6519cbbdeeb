"""A torch module of one's own as a backbone, from raw rows to a saved head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extractors import BadRow, InputError, load_extractor
from extractors.changes import with_changes
from extractors.encode import encode_rows
from extractors.module import ModuleExtractor
from extractors.options import FeatureOptions


def network() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.5),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 24),
    )


class Drawing(torch.nn.Module):
    """Dropout that does not know of evaluation."""

    def forward(self, values: Any) -> Any:
        return torch.nn.functional.dropout(values, 0.5, training=True)


def pixels(image: np.ndarray) -> Any:
    return torch.from_numpy(image.astype(np.float32) / 255 - 0.5)[None]


def make(**changes: Any) -> ModuleExtractor:
    settings: dict[str, Any] = {"name": "my-net", "version": "1", "modality": "image"}
    settings |= {"probe": np.zeros((8, 8), np.uint8), "device": "cpu"} | changes
    module = settings.pop("module", None) or network()
    return ModuleExtractor(module, settings.pop("preprocess", pixels), **settings)


def images(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (n, 8, 8), dtype=np.uint8))


def test_rows_are_those_of_the_module_in_evaluation_mode() -> None:
    rows = images(21)
    extractor = make(batch_size=4)
    with torch.inference_mode():
        module = network().double().eval()
        expected = module(torch.stack([pixels(row) for row in rows]).double()).numpy()
    found = encode_rows(extractor, rows, [str(i) for i in range(21)]).features
    reverse = encode_rows(extractor, rows[::-1], [str(i) for i in range(21)]).features[::-1]
    scale = np.abs(expected).max(axis=1, keepdims=True)
    assert np.abs((found - expected) / scale).max() <= 1e-5
    assert np.abs((found - reverse) / scale).max() <= 1e-5
    assert extractor.dim == 24
    unit = make(options=FeatureOptions(normalize="l2")).encode([pixels(row) for row in rows])
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)


def test_the_fingerprint_knows_weights_version_and_options_and_nothing_else() -> None:
    first = make().fingerprint()
    assert make(batch_size=7).fingerprint() == first
    used = make()
    used.encode([pixels(images(1)[0])])
    assert used.fingerprint() == first
    changed = network()
    with torch.no_grad():
        changed[0].bias[3] += 1e-6
    others = [
        make(version="2"),
        make(name="other"),
        make(module=changed),
        make(options=FeatureOptions(normalize="l2")),
    ]
    for other in others:
        assert other.fingerprint() != first


def test_training_in_place_is_seen_by_the_fingerprint() -> None:
    row = [pixels(images(1)[0])]
    for module, options in (
        (network(), FeatureOptions()),
        (network().double(), FeatureOptions()),  # a copy in float32 computes
    ):
        used = make(module=module, options=options)
        before, features = used.fingerprint(), used.encode(row)
        with torch.no_grad():
            module[0].weight.mul_(2)
        assert used.fingerprint() != before
        assert np.abs(used.encode(row) - features).max() > 1e-3
        fresh = make(module=module, options=options)
        assert used.fingerprint() == fresh.fingerprint()
        np.testing.assert_array_equal(used.encode(row), fresh.encode(row))


def test_a_module_in_half_precision_stays_the_callers() -> None:
    module = network().half().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    extractor = make(module=module)
    fingerprint = extractor.fingerprint()
    assert extractor.encode([pixels(images(1)[0])]).dtype == np.float32
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])
    assert module.training
    assert extractor.fingerprint() == fingerprint == make(module=module).fingerprint()


@pytest.mark.slow
def test_fit_predict_and_load_with_a_module(tmp_path: Path) -> None:
    from tasks import ConvexHeadPipeline
    from tasks.config import FitConfig
    from tasks.console import make_reporter
    from tasks.fit import run_fit

    config = FitConfig(
        data="digits", out=tmp_path / "head", cache_dir=tmp_path, n_gates=4, beta=0.1,
        train_rows=300, test_rows=100,
    )  # fmt: skip
    record = run_fit(config, reporter=make_reporter(quiet=True), extractor=make())
    assert record.backbone == "module:my-net"
    assert record.test_accuracy > 0.7
    row = images(1)[0]
    loaded = ConvexHeadPipeline.from_pretrained(tmp_path / "head", extractor=make())
    assert loaded(row)["label"] in record.classes  # type: ignore[index]
    other = ConvexHeadPipeline.from_pretrained(tmp_path / "head", extractor=make(version="2"))
    with pytest.raises(InputError, match="version differ"):
        other(row)
    with pytest.raises(InputError, match="make it in Python"):
        ConvexHeadPipeline.from_pretrained(tmp_path / "head")(row)


def test_what_goes_wrong_is_one_sentence() -> None:
    with pytest.raises(BadRow, match="AttributeError"):
        make().prepare("no image")
    with pytest.raises(BadRow, match="str instead of a tensor"):
        make(preprocess=lambda row: "text").prepare(1)
    with pytest.raises(InputError, match=r"gives \(1, 1, 8, 8\) for 1 rows"):
        make(module=torch.nn.Identity()).encode([pixels(images(1)[0])])
    noisy = torch.nn.Sequential(torch.nn.Flatten(), Drawing())
    with pytest.raises(InputError, match="other features for the same row at every pass"):
        _ = make(module=noisy, probe=np.arange(64, dtype=np.uint8).reshape(8, 8)).dim
    with pytest.raises(InputError, match="the version of a module"):
        make(version="a b")
    with pytest.raises(InputError, match="pooling: the module my-net has no such choice"):
        make(options=FeatureOptions(pooling="mean"))
    with pytest.raises(InputError, match="give a row as `probe`"):
        assert make(probe=None, preprocess=lambda row: row["x"]).dim
    with pytest.raises(InputError, match="make it in Python"):
        load_extractor("module:my-net")
    with pytest.raises(InputError, match="a module of your own, whose weights"):
        with_changes(make(), {"0.bias": np.zeros(8, np.float32)})
