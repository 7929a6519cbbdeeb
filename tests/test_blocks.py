"""Cuts that cannot be made are refused in one sentence, and leave the backbone as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import save_backbone, save_text_model

from extractors import InputError, load_extractor
from extractors.blocks import CutBackbone
from extractors.options import FeatureOptions

PROBE = ["a fine film", "dull", "what a wonderful day"]


def load(name: str, **options: Any) -> Any:
    return load_extractor(name, device="cpu", options=FeatureOptions(**options))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_backbone("bert", tmp_path_factory.mktemp("blocks"))


@pytest.mark.parametrize(("layer", "k"), [(0, 2), (1, 1), (3, 1), (-2, 1), (-5, 4), (2, 2)])
def test_a_layer_below_the_cut_is_refused(bert: str, layer: int, k: int) -> None:
    extractor = load(bert, layer=(layer,))
    with pytest.raises(InputError, match=rf"layer {layer} lies below the cut of unfreeze {k}"):
        CutBackbone(extractor, k, PROBE)
    assert not any(p.requires_grad for p in extractor._model.parameters())


@pytest.mark.parametrize(("layers", "k"), [((3,), 2), ((-1, 0), 1), ((-2,), 2)])
def test_a_layer_above_the_cut_is_trained(bert: str, layers: tuple[int, ...], k: int) -> None:
    assert CutBackbone(load(bert, layer=layers), k, PROBE).parameters


def test_layers_of_timm_are_counted_from_zero(tmp_path: Path) -> None:
    import numpy as np

    name = save_backbone("vit_tiny_patch16_224", tmp_path)  # three blocks
    images = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="layer 1 lies below the cut of unfreeze 1"):
        CutBackbone(load(name, layer=(1,)), 1, images)
    assert CutBackbone(load(name, layer=(1,)), 2, images).parameters


def test_a_backbone_that_pads_its_rows_once_more_is_refused(tmp_path: Path) -> None:
    import transformers

    folder = save_text_model("roberta", tmp_path / "longformer")
    config = transformers.LongformerConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=64, attention_window=8, pad_token_id=1,
    )  # fmt: skip
    transformers.LongformerModel(config).eval().save_pretrained(folder)
    extractor = load(f"hf:{folder}")
    with pytest.raises(InputError, match="cannot be cut below its top 1 blocks") as caught:
        CutBackbone(extractor, 1, PROBE)
    assert "\n" not in str(caught.value)
    assert not any(p.requires_grad for p in extractor._model.parameters())
