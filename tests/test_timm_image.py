"""Image backbones through timm: a tiny random one built here, and the real ones when at hand."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from extractors import BadRow, InputError, Rows, load_extractor
from extractors.encode import encode_rows
from extractors.extract import extract
from extractors.timm_image import TimmImageExtractor

REPOSITORY = Path(__file__).parents[1]


def photograph(seed: int, width: int = 60, height: int = 40) -> Image.Image:
    """Smooth random colours: noise would vanish when it is scaled down."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def save_backbone(folder: Path, *, channels: int = 3, mean: float = 0.4) -> Path:
    """A small random ResNet in timm's local-dir form, with preprocessing of its own."""
    from extractors.torchvision_compat import ensure_torchvision_imports

    ensure_torchvision_imports()
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24], "stem_width": 8}
    model = timm.create_model("resnet10t", num_classes=7, in_chans=channels, **arguments)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_classes": 7,
        "num_features": 24,
        "model_args": arguments | ({"in_chans": 1} if channels == 1 else {}),
        "pretrained_cfg": {
            "input_size": [channels, 48, 48],
            "interpolation": "bilinear",
            "crop_pct": 0.75,
            "crop_mode": "center",
            "mean": [mean] * channels,
            "std": [0.25] * channels,
            "num_classes": 7,
            "first_conv": "conv1.0",
            "classifier": "fc",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("timm") / "tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> TimmImageExtractor:
    extractor = load_extractor(f"timm:local-dir:{folder}", device="cpu")
    assert isinstance(extractor, TimmImageExtractor)
    return extractor


def test_a_strip_that_would_grow_to_gigabytes_is_a_bad_row(tiny: TimmImageExtractor) -> None:
    with pytest.raises(BadRow, match="a strip of 60000 x 1 pixels: crop it"):
        tiny.prepare(png(Image.new("RGB", (60_000, 1))))
    assert tiny.prepare(png(Image.new("RGB", (400, 2)))).shape[0] == 3


def test_the_models_own_evaluation_transform_is_used(tiny: TimmImageExtractor) -> None:
    """Scaled so that 48 / 0.75 = 64 is the short side, cropped, normalised: done here by hand."""
    image = photograph(0, width=60, height=40)
    found = tiny.prepare(png(image)).numpy()
    scaled = image.resize((96, 64), Image.Resampling.BILINEAR).crop((24, 8, 72, 56))
    expected = (np.asarray(scaled, np.float32).transpose(2, 0, 1) / 255 - 0.4) / 0.25
    assert found.shape == (3, 48, 48)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_width_is_that_of_an_output_and_the_features_are_the_pooled_ones(
    tiny: TimmImageExtractor, folder: Path
) -> None:
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = torch.stack([tiny.prepare(png(photograph(i))) for i in range(3)])
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True).numpy()
    features = tiny.encode(list(pixels))
    assert features.dtype == np.float32
    assert features.shape == (3, tiny.dim) == expected.shape
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert tiny.max_length is None
    assert tiny.token_counts(list(pixels)) is None


def test_an_image_has_one_vector_whatever_its_batch_order_and_neighbours(
    tiny: TimmImageExtractor,
) -> None:
    images = [png(photograph(i, 50 + i, 90 - i)) for i in range(11)]
    ids = [str(i) for i in range(11)]
    alone = np.concatenate([tiny.encode([tiny.prepare(image)]) for image in images])
    together = encode_rows(tiny, images, ids).features
    reverse = encode_rows(tiny, images[::-1], ids).features[::-1]
    scale = np.abs(alone).max()
    assert len(np.unique(alone.round(3), axis=0)) == 11
    assert np.abs(together - alone).max() <= 1e-5 * scale
    assert np.abs(reverse - alone).max() <= 1e-5 * scale


def test_files_bytes_images_and_arrays_are_one_and_the_same(
    tiny: TimmImageExtractor, tmp_path: Path
) -> None:
    image = photograph(3)
    path = tmp_path / "a.png"
    path.write_bytes(png(image))
    expected = tiny.encode([tiny.prepare(path.read_bytes())])
    for same in (path, image, np.asarray(image)):
        np.testing.assert_array_equal(tiny.encode([tiny.prepare(same)]), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2000, 3)])
def test_odd_sizes_are_encoded(tiny: TimmImageExtractor, size: tuple[int, int]) -> None:
    assert np.isfinite(tiny.encode([tiny.prepare(photograph(0, *size))])).all()


def test_a_grey_backbone_reads_grey(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "grey", channels=1)
    extractor = load_extractor(f"timm:{folder}")
    grey = photograph(1).convert("L")
    pixels = extractor.prepare(png(grey))
    assert pixels.shape == (1, 48, 48)
    assert extractor.encode([pixels]).shape == (1, extractor.dim)


def test_an_image_that_does_not_decode_is_named(tiny: TimmImageExtractor, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(png(photograph(0))[:200])
    good = tmp_path / "good.png"
    good.write_bytes(png(photograph(0)))
    rows = Rows(["a/good.png", "a/broken.png"], [good, broken], np.array([0, 1]))
    options = {
        "task": "photographs",
        "classes": ("a", "b"),
        "data_fingerprint": {"sha256": "p"},
        "cache_dir": tmp_path / "cache",
    }
    with pytest.raises(InputError) as caught:
        extract({"train": rows}, tiny, **options)
    assert "row 'a/broken.png' cannot be encoded" in str(caught.value)
    assert str(broken) in str(caught.value)
    done = extract({"train": rows}, tiny, on_bad_row="skip", **options)
    assert done.store.ids("train") == ["a/good.png"]
    assert done.store.read("train").tokens is None
    assert done.truncated_fraction == 0.0
    assert [row.id for row in done.skipped] == ["a/broken.png"]
    assert done.store.manifest.modality == "image"


# ---- names, fingerprints, refusals ---------------------------------------------------------------


def test_a_folder_is_known_by_weights_and_preprocessing_and_not_by_its_place(
    folder: Path, tmp_path: Path
) -> None:
    first = load_extractor(f"timm:local-dir:{folder}").fingerprint()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "README.md").write_text("words")
    assert load_extractor(f"timm:local-dir:{copy}").fingerprint() == first
    other = save_backbone(tmp_path / "other", mean=0.5)  # same weights, other preprocessing
    second = load_extractor(f"timm:local-dir:{other}").fingerprint()
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    third = load_extractor(f"timm:local-dir:{copy}").fingerprint()
    assert len({json.dumps(fingerprint) for fingerprint in (first, second, third)}) == 3


def test_a_folder_without_safetensors_is_refused(folder: Path, tmp_path: Path) -> None:
    for missing in ("config.json", "model.safetensors"):
        copy = shutil.copytree(folder, tmp_path / missing)
        (copy / missing).rename(copy / "pytorch_model.bin")
        extractor = load_extractor(f"timm:local-dir:{copy}")
        with pytest.raises(InputError, match=r"needs config\.json and model\.safetensors"):
            extractor.fingerprint()
        with pytest.raises(InputError, match=r"needs config\.json and model\.safetensors"):
            _ = extractor.dim
    (copy / "old.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"needs config\.json and model\.safetensors"):
        _ = load_extractor(f"timm:local-dir:{copy}").dim  # not that of the pickle beside it


@pytest.mark.parametrize(
    "edit",
    [
        {"architecture": "no_such_network"},
        {"model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 32], "stem_width": 8}},
        {"model_args": {"no_such_argument": 1}},
    ],
)
def test_a_folder_that_timm_cannot_build_is_refused_in_one_line(
    folder: Path, tmp_path: Path, edit: dict[str, object]
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | edit))
    with pytest.raises(InputError, match="timm cannot build") as caught:
        _ = load_extractor(f"timm:local-dir:{copy}").dim
    assert "\n" not in str(caught.value)


TRY_NAMES = """
import sys
from extractors import load_extractor
for name in sys.argv[1:]:
    try:
        print(load_extractor(name).fingerprint())
    except Exception as error:
        print(type(error).__name__, error)
print("torch" in sys.modules)
"""


def try_names(*names: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", TRY_NAMES, *names],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_names_that_timm_does_not_know_are_refused_with_those_it_knows(tmp_path: Path) -> None:
    found = try_names(
        "timm:resnet1o8", "timm:resnet18.a1_in2k", "timm:resnet18.a1_in1k", HF_HOME=str(tmp_path)
    )
    assert found[0].startswith("InputError timm knows no model 'resnet1o8': did you mean")
    assert "'timm:resnet18'" in found[0]
    assert "'timm:resnet18.a1_in1k'" in found[1]
    assert found[2].startswith("MachineError timm/resnet18.a1_in1k is not in the local cache")
    assert len(found) == 4


def test_a_cached_name_and_a_folder_have_fingerprints_without_torch(
    folder: Path, tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    found = try_names("timm:resnet18.a1_in1k", f"timm:local-dir:{folder}", HF_HOME=str(tmp_path))
    assert f"'id': 'timm/resnet18.a1_in1k', 'revision': '{commit}'" in found[0]
    assert "content_sha256" in found[1]
    assert found[2] == "False"


# ---- the real ones -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dim"), [("timm_mobilenetv2_100", 1280), ("timm_tf_mobilenetv3_small_100", 1024)]
)
def test_real_backbones_tell_ants_from_bees(
    shared_models: Path, shared_data: Path, name: str, dim: int
) -> None:
    import pyarrow.parquet as pq
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    table = pq.read_table(shared_data / "hymenoptera" / "train.parquet").slice(0, 120)
    images, labels = table["image"].to_pylist(), np.array(table["label"])
    extractor = load_extractor(f"timm:local-dir:{shared_models / name}")
    encoded = encode_rows(extractor, images, [str(i) for i in range(len(images))])
    assert extractor.dim == dim == encoded.features.shape[1]
    features = StandardScaler().fit_transform(encoded.features)
    probe = LogisticRegression(max_iter=500).fit(features[:80], labels[:80])
    assert probe.score(features[80:], labels[80:]) >= 0.85
