"""Models that compute a text with what its neighbours ask for: here, never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import row_errors
from tiny_models import save_text_model

from extractors import InputError, load_extractor
from extractors.blocks import CutBackbone
from extractors.graph import backbone_graph
from extractors.options import FeatureOptions

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
}


def exchange_model(folder: Path, model: Any) -> str:
    """The tokenizer of the folder with another model."""
    model.eval().save_pretrained(folder)
    return f"hf:{folder}"


def test_bigbird_has_one_attention_whatever_came_before(tmp_path: Path) -> None:
    import transformers

    folder = save_text_model("roberta", tmp_path / "big bird")
    config = transformers.BigBirdConfig(
        vocab_size=400, max_position_embeddings=256, block_size=4, num_random_blocks=1, **SIZES
    )
    name = exchange_model(folder, transformers.BigBirdModel(config))
    long = "the dull film went on and on; " * 9  # long enough for sparse attention
    fresh = load_extractor(name, device="cpu")
    first = fresh.encode([long])
    fresh.encode(["a"])
    np.testing.assert_array_equal(fresh.encode([long]), first)
    assert row_errors(fresh.encode([long, "a"])[1:], fresh.encode(["a"])) <= 1e-5
    assert fresh.fingerprint()["attention"] == "original_full"


@pytest.fixture
def longrope(tmp_path: Path) -> str:
    import transformers

    folder = save_text_model("llama", tmp_path / "longrope")
    config = transformers.LlamaConfig(
        vocab_size=400,
        max_position_embeddings=64,
        num_key_value_heads=2,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0] * 8,
            "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
            "original_max_position_embeddings": 16,
        },
        **SIZES,
    )
    return exchange_model(folder, transformers.LlamaModel(config))


@pytest.mark.parametrize("options", [{}, {"max_length": 20}, {"long_text": "windows"}], ids=str)
def test_longrope_positions_are_those_of_each_text(longrope: str, options: Any) -> None:
    extractor = load_extractor(longrope, device="cpu", options=FeatureOptions(**options))
    words = ("what a wonderful day and yet nobody would want to miss the end of it " * 8).split()
    texts = [" ".join(words[:n]) for n in (90, 1, 3, 40, 8, 15, 2, 60)]
    alone = np.concatenate([extractor.encode([text]) for text in texts])
    assert row_errors(extractor.encode(texts), alone) <= 1e-5
    assert row_errors(extractor.encode(texts[::-1])[::-1], alone) <= 1e-5
    assert "positions" in extractor.fingerprint()


def test_what_passes_once_over_all_rows_refuses_longrope(longrope: str) -> None:
    extractor = load_extractor(longrope, device="cpu")
    with pytest.raises(InputError, match="max_length 16"):
        backbone_graph(extractor)
    with pytest.raises(InputError, match="max_length 16"):
        CutBackbone(extractor, 1, ["a fine film"])
    short = load_extractor(longrope, device="cpu", options=FeatureOptions(max_length=16))
    assert CutBackbone(short, 1, ["a fine film"]).parameters
    assert backbone_graph(short).names == ("input_ids", "attention_mask")


def test_xlnet_has_no_limit(tmp_path: Path) -> None:
    import transformers

    folder = save_text_model("roberta", tmp_path / "xlnet")
    config = transformers.XLNetConfig(vocab_size=400, d_model=32, n_layer=2, n_head=2, d_inner=48)
    extractor = load_extractor(exchange_model(folder, transformers.XLNetModel(config)))
    assert extractor.max_length is None
    texts = ["a fine film", "the dull film went on and on; " * 9]
    alone = np.concatenate([extractor.encode([text]) for text in texts])
    assert row_errors(extractor.encode(texts), alone) <= 1e-5
