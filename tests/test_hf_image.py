"""Image backbones through transformers: five random architectures against plain computations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rows import row_errors
from tiny_models import IMAGE_KINDS, save_image_model

from extractors import BadRow, InputError, load_extractor
from extractors.encode import encode_rows
from extractors.hf_image import TransformerImageExtractor
from extractors.options import FeatureOptions

PREFIX = {"vit": 1, "dinov2": 1, "clip": 1, "siglip": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("image models")
    return {kind: save_image_model(kind, home / kind) for kind in IMAGE_KINDS}


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(11)]
    return [
        Image.fromarray(pixels).resize((40 + 3 * i, 60 - 2 * i), Image.Resampling.BICUBIC)
        for i, pixels in enumerate(coarse)
    ]


def load(folder: Path, **options: Any) -> TransformerImageExtractor:
    found = load_extractor(f"hf:{folder}", device="cpu", options=FeatureOptions(**options))
    assert isinstance(found, TransformerImageExtractor)
    return found


def outputs(kind: str, folder: Path, images: list[Image.Image]) -> Any:
    """The whole model's outputs in float64, image by image with the library's own processor."""
    import torch
    from transformers import AutoImageProcessor, AutoModel

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    found = []
    for image in images:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].double()
        with torch.inference_mode():
            tower = model.vision_model if kind in ("clip", "siglip") else model
            out = tower(pixel_values=pixels, output_hidden_states=True)
            if kind == "clip":
                out["projected"] = model.visual_projection(out.pooler_output)
        found.append(out)
    return found


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_features_are_the_models_own(
    kind: str, folders: dict[str, Path], images: list[Image.Image]
) -> None:
    extractor = load(folders[kind])
    found = extractor.encode([extractor.prepare(image) for image in images])
    out = outputs(kind, folders[kind], images)
    own = {
        "vit": lambda o: o.last_hidden_state[:, 0],
        "dinov2": lambda o: o.last_hidden_state[:, 0],
    }
    formula = own.get(kind, lambda o: o.pooler_output)
    expected = np.concatenate([formula(o).flatten(1).numpy() for o in out])
    assert found.dtype == np.float32
    assert found.shape == (11, extractor.dim) == expected.shape
    assert row_errors(found, expected) <= 1e-5
    assert len(np.unique(found.round(3), axis=0)) == 11
    assert extractor.max_length is None


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_layers_and_poolings_are_those_of_the_hidden_states(
    kind: str, folders: dict[str, Path], images: list[Image.Image]
) -> None:
    out = outputs(kind, folders[kind], images)

    def patches(o: Any, layer: int) -> np.ndarray:
        state = o.last_hidden_state if layer == -1 else o.hidden_states[layer]
        if kind == "convnext":
            state = state.flatten(2).transpose(1, 2)
        return state[0].numpy()

    first = PREFIX.get(kind, 0)
    mean = np.array(
        [np.concatenate([patches(o, i)[first:].mean(0) for i in (-1, -2)]) for o in out]
    )
    extractor = load(folders[kind], layer=(-1, -2), pooling="mean")
    prepared = [extractor.prepare(image) for image in images]
    assert row_errors(extractor.encode(prepared), mean) <= 1e-5
    largest = np.array([patches(o, -1)[first:].max(0) for o in out])
    assert row_errors(load(folders[kind], pooling="max").encode(prepared), largest) <= 1e-5
    both = load(folders[kind], pooling="cls+mean")
    if first:
        expected = np.array(
            [np.concatenate([patches(o, -1)[0], patches(o, -1)[1:].mean(0)]) for o in out]
        )
        assert row_errors(both.encode(prepared), expected) <= 1e-5
    else:
        with pytest.raises(InputError, match="has no class token"):
            both.encode(prepared)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
def test_an_image_has_one_vector_whatever_its_batch_order_and_neighbours(
    kind: str, folders: dict[str, Path], images: list[Image.Image]
) -> None:
    extractor = load(folders[kind])
    ids = [str(i) for i in range(len(images))]
    alone = np.concatenate([extractor.encode([extractor.prepare(i)]) for i in images])
    together = encode_rows(extractor, images, ids).features
    reverse = encode_rows(extractor, images[::-1], ids).features[::-1]
    assert row_errors(together, alone) <= 1e-5
    assert row_errors(reverse, alone) <= 1e-5


def test_clip_before_and_after_its_projection(
    folders: dict[str, Path], images: list[Image.Image], tmp_path: Path
) -> None:
    out = outputs("clip", folders["clip"], images)
    after = load(folders["clip"], projection="after")
    prepared = [after.prepare(image) for image in images]
    expected = np.concatenate([o["projected"].numpy() for o in out])
    assert expected.shape[1] == after.dim == 24
    assert row_errors(after.encode(prepared), expected) <= 1e-5
    unit = load(folders["clip"], projection="after", normalize="l2").encode(prepared)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    before = load(folders["clip"], projection="before")
    np.testing.assert_array_equal(before.encode(prepared), load(folders["clip"]).encode(prepared))

    tower = save_image_model("clip", tmp_path / "tower", tower_only=True)
    assert load(tower).dim == 32
    # A tower that was saved alone has no projection; random weights in its place would be noise.
    with pytest.raises(InputError, match=r"lack 1 weights .* visual_projection"):
        load(tower, projection="after").encode(prepared)


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("siglip", {"projection": "after"}, r"\(siglip\) has no projection"),
        ("vit", {"projection": "before"}, r"\(vit\) has no projection"),
        ("clip", {"projection": "after", "pooling": "mean"}, "leave layer and pooling away"),
        ("vit", {"prompt": "x"}, "prompt: the image model .* has no such choice"),
        ("convnext", {"layer": (7,)}, "layer 7: .* has 4 layers"),
    ],
)
def test_what_the_model_does_not_have_is_refused(
    kind: str, options: dict[str, Any], sentence: str, folders: dict[str, Path]
) -> None:
    extractor = load(folders[kind], **options)
    with pytest.raises(InputError, match=sentence) as caught:
        extractor.encode([extractor.prepare(np.zeros((32, 32, 3), np.uint8))])
    assert "\n" not in str(caught.value)


def test_what_is_no_image_is_a_bad_row(folders: dict[str, Path]) -> None:
    extractor = load(folders["vit"])
    for item in (b"no image", None, "path", np.zeros((3, 3))):
        with pytest.raises(BadRow):
            extractor.prepare(item)
    for size in ((1, 1), (1, 300), (300, 1)):
        pixels = extractor.prepare(Image.new("L", size))
        assert np.isfinite(extractor.encode([pixels])).all()


def test_a_masked_autoencoder_sees_every_patch_in_its_place(
    tmp_path: Path, images: list[Image.Image]
) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 48, "image_size": 32, "patch_size": 8}
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**sizes, initializer_range=0.3))
    folder = save_image_model("vit", tmp_path / "mae")
    model.eval().save_pretrained(folder)
    # The same weights in a network that hides nothing.
    vit = transformers.ViTModel(
        transformers.ViTConfig(**sizes, layer_norm_eps=model.config.layer_norm_eps),
        add_pooling_layer=False,
    ).eval()
    vit.load_state_dict(model.state_dict())
    for options, formula in (
        ({}, lambda states: states[:, 0]),
        ({"pooling": "mean"}, lambda states: states[:, 1:].mean(1)),
        ({"pooling": "last"}, lambda states: states[:, -1]),
    ):
        extractor = load(folder, **options)
        prepared = [extractor.prepare(image) for image in images]
        with torch.inference_mode():
            expected = formula(vit(pixel_values=torch.stack(prepared)).last_hidden_state).numpy()
        found = extractor.encode(prepared)
        assert row_errors(found, expected) <= 1e-5
        np.testing.assert_array_equal(extractor.encode(prepared), found)
    assert extractor.fingerprint()["mask_ratio"] == 0
    assert "mask_ratio" not in load(save_image_model("vit", tmp_path / "vit")).fingerprint()


def test_patches_may_be_given_by_height_and_width(
    folders: dict[str, Path], tmp_path: Path, images: list[Image.Image]
) -> None:
    copy = shutil.copytree(folders["vit"], tmp_path / "patches")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"patch_size": [8, 8]}))
    expected, found = (load(folder, pooling="cls+mean") for folder in (folders["vit"], copy))
    prepared = [expected.prepare(image) for image in images]
    np.testing.assert_array_equal(found.encode(prepared), expected.encode(prepared))
