"""timm's families: maps of every layout pooled, and every name it lists understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import photograph, row_errors
from tiny_models import save_timm_model

from extractors import InputError, load_extractor
from extractors.encode import encode_rows
from extractors.options import FeatureOptions

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet10t": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "stem_width": 8},
    "vit_tiny_patch16_224": {"img_size": 64, "embed_dim": 24, "depth": 3, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 64,
        "window_size": 2,
        "embed_dim": 12,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 2, 4],
    },
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 24]},
    "mobilenetv3_small_050": {},
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    return {
        name: save_timm_model(home / name, name, **arguments)
        for name, arguments in FAMILIES.items()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_maps_are_pooled_over_patches_whatever_their_layout(
    name: str, families: dict[str, Path]
) -> None:
    import timm
    import torch

    def load(**options: Any) -> Any:
        chosen = FeatureOptions(**options)
        return load_extractor(f"timm:{families[name]}", device="cpu", options=chosen)

    plain = load()
    prepared = [plain.prepare(photograph(i)) for i in range(9)]
    own = plain.encode(prepared)
    alone = np.concatenate([plain.encode([row]) for row in prepared])
    assert row_errors(own, alone) <= 1e-5
    ids = [str(i) for i in range(9)]
    reverse = encode_rows(plain, [photograph(i) for i in range(8, -1, -1)], ids).features
    assert row_errors(reverse[::-1], alone) <= 1e-5

    model = timm.create_model(f"local-dir:{families[name]}", pretrained=True).double().eval()
    with torch.inference_mode():
        maps = model.forward_features(torch.stack(prepared).double())
    first = 1 if name.startswith("vit") else 0
    axes = {"NHWC": (1, 2), "NLC": (1,)}.get(getattr(model, "output_fmt", ""), (2, 3))
    maps = maps.numpy()[:, first:] if maps.ndim == 3 else maps.numpy()
    axes = (1,) if maps.ndim == 3 else axes
    assert row_errors(load(pooling="mean").encode(prepared), maps.mean(axes)) <= 1e-5
    assert row_errors(load(pooling="max").encode(prepared), maps.max(axes)) <= 1e-5
    last = load(layer=(-1,)).encode(prepared)
    if name != "mobilenetv3_small_050":  # whose head comes after its last stage
        assert row_errors(last, load(pooling="mean").encode(prepared)) <= 1e-5
    both = load(layer=(-1, -2))
    assert row_errors(both.encode(prepared)[:, : last.shape[1]], last) <= 1e-5
    assert both.dim > last.shape[1]
    if first:
        assert row_errors(load(pooling="cls").encode(prepared), own) <= 1e-5
    else:
        with pytest.raises(InputError, match="has no class token"):
            load(pooling="cls").encode(prepared)
    with pytest.raises(InputError, match=r"layer -40: .* blocks or stages"):
        load(layer=(-40,)).encode(prepared)
    with pytest.raises(InputError, match="projection: the timm model"):
        load(projection="after").fingerprint()


def test_every_name_that_timm_lists_is_a_repository_or_one_sentence() -> None:
    from extractors.timm_image import _import_timm, _registered_repository

    timm = _import_timm()
    found, nowhere, pickles = {}, [], []
    for name in timm.list_models():
        try:
            found[name] = _registered_repository(name)
        except InputError as error:
            assert "\n" not in str(error)
            (pickles if "its weights are a pickle (http" in str(error) else nowhere).append(name)
            assert name in pickles or "nobody has published weights for it" in str(error)
    assert all(value.count("/") == 1 for value in found.values())
    assert len(found) > 1000
    assert found["resnet50"] == "timm/resnet50.a1_in1k"
    assert {"legacy_xception", "gcvit_tiny", "vit_huge_patch14_gap_224"} <= set(pickles)
    assert len(pickles) < 25
    for name in nowhere:  # nor for any tag of it
        assert timm.list_models(f"{name}.*", pretrained=True) == []


def test_a_model_whose_weights_are_a_pickle_is_read_after_the_line_that_converts_it(
    tmp_path: Path,
) -> None:
    import timm
    import torch
    from timm.models._hub import save_for_hf

    with pytest.raises(InputError, match="save_for_hf") as caught:
        load_extractor("timm:legacy_seresnet18", device="cpu").fingerprint()
    line = str(caught.value).split("once with ")[1].split(", and name")[0]
    line = line.replace("pretrained=True", "pretrained=False").replace("timm.models._hub.", "")
    scope = {"timm": timm, "save_for_hf": save_for_hf, "FOLDER": str(tmp_path / "model")}
    eval(line, scope)
    extractor = load_extractor(f"timm:local-dir:{tmp_path / 'model'}", device="cpu")
    with torch.inference_mode():
        assert extractor.encode([extractor.prepare(photograph(0))]).shape == (1, 512)


@pytest.mark.parametrize("architecture", ["qwen3_vit_88m_enc", "mobilenetv5_300m_enc"])
def test_an_encoder_without_a_vector_gives_the_mean_of_its_map(
    architecture: str, tmp_path: Path
) -> None:
    import timm
    import torch

    small: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}
    small |= {"out_features": 24}
    if architecture.startswith("mobilenetv5"):
        small = {"channel_multiplier": 0.1, "msfa_indices": (-2, -1)}
    path = save_timm_model(tmp_path / "model", architecture, **small)
    extractor = load_extractor(f"timm:{path}", device="cpu")
    prepared = [extractor.prepare(photograph(i)) for i in range(2)]
    model = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0).eval()
    with torch.inference_mode():
        found = model(torch.stack(prepared))
    places = (1,) if found.ndim == 3 else (2, 3)
    assert found.ndim > 2
    assert row_errors(extractor.encode(prepared), found.mean(places).numpy()) <= 1e-5
