"""Every adapter through the command line into a store, and timm's families of architectures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import photograph, row_errors
from tiny_models import (
    IMAGE_KINDS,
    TEXT_KINDS,
    save_image_model,
    save_text_model,
    save_timm_model,
)

from extractors import FeatureStore, InputError, Rows, load_extractor
from extractors.extract import extract
from extractors.options import FeatureOptions, parse_layers
from tasks import ConvexHeadPipeline
from tasks.cli import main
from tasks.config import ExtractConfig
from tasks.config_files import load_config, to_toml

SMALL = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]}
WORDS = [
    "a",
    "fine",
    "film",
    "that",
    "nobody",
    "has",
    "eyes",
    "for",
    "and",
    "yet",
    "the",
    "dull",
    "one",
    "went",
    "on",
    "and",
    "on",
]


def sentences(n: int) -> list[str]:
    rng = np.random.default_rng(3)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 70))) for _ in range(n)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def reviews(home: Path) -> Path:
    path = home / "reviews.jsonl"
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(sentences(60))]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def pictures(home: Path) -> Path:
    for i in range(40):
        folder = home / "pictures" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:02d}.png").write_bytes(photograph(i))
    return home / "pictures"


@pytest.fixture(scope="module")
def backbones(home: Path) -> dict[str, str]:
    """Name of each adapter's case -> what is written behind --backbone."""
    text = {kind: f"hf:{save_text_model(kind, home / kind)}" for kind in TEXT_KINDS}
    image = {kind: f"hf:{save_image_model(kind, home / kind)}" for kind in IMAGE_KINDS}
    timm = save_timm_model(home / "timm", "resnet10t", stem_width=8, **SMALL)
    # A plain transformer in a folder is mean pooling to sentence-transformers.
    return text | image | {"st": f"st:{home / 'bert'}", "timm": f"timm:{timm}"}


@pytest.mark.parametrize("kind", [*TEXT_KINDS, *IMAGE_KINDS, "st", "timm"])
def test_every_adapter_fills_a_store_that_does_not_depend_on_interruptions(
    kind: str,
    backbones: dict[str, str],
    reviews: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = pictures if kind in (*IMAGE_KINDS, "timm") else reviews
    job = ["extract", str(data), "--backbone", backbones[kind], "--json", "--quiet"]

    def run(cache: str, *more: str) -> dict[str, Any]:
        assert main([*job, "--cache-dir", str(tmp_path / cache), *more]) == 0
        return json.loads(capsys.readouterr().out)

    whole = run("whole")
    first = run("parts", "--train-rows", "20", "--test-rows", "5")
    rest = run("parts")
    assert (first["resumed_rows"], rest["resumed_rows"]) == (0, first["rows"])
    assert rest["rows"] == whole["rows"] == (40 if data == pictures else 60)
    stores = [FeatureStore.open(record["store"]) for record in (whole, rest)]
    assert stores[0].manifest.key == stores[1].manifest.key
    for split in ("train", "validation", "test"):
        expected = stores[0].read(split)
        found = stores[1].read(split, expected.ids)
        assert row_errors(found.features, expected.features) <= 1e-5
    if data == reviews:
        statistics = stores[1].manifest.measured["tokens"]
        assert statistics == stores[0].manifest.measured["tokens"] == whole["tokens"]
        counts = np.concatenate(
            [block.tokens for split in stores[0].splits for block in stores[0].blocks(split)]
        )
        limit = stores[0].manifest.max_length
        assert statistics == {
            "texts": 60,
            "mean": round(float(counts.mean()), 1),
            "median": int(np.quantile(counts, 0.5, method="inverted_cdf")),
            "p95": int(np.quantile(counts, 0.95, method="inverted_cdf")),
            "max": counts.max(),
            "truncated": int((counts > limit).sum()),
            "tokens": counts.sum(),
            "tokens_lost": int(np.maximum(counts - limit, 0).sum()),
        }
        assert whole["truncated_fraction"] == statistics["truncated"] / 60 > 0


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_options_reach_the_store_the_screen_and_the_manifest(
    kind: str,
    backbones: dict[str, str],
    reviews: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = pictures if kind == "clip" else reviews
    chosen = ["--layer", "-1,-2", "--pooling", "cls+mean", "--normalize", "l2"]
    chosen += ["--autocast", "bfloat16"]
    if kind == "bert":
        chosen += ["--max-length", "16", "--long-text", "windows", "--prompt", "query: "]
    job = ["extract", str(data), "--backbone", backbones[kind], "--cache-dir", str(tmp_path)]
    assert main([*job, *chosen, "--quiet"]) == 0
    screen = capsys.readouterr().out
    assert "half precision differs from float32 by" in screen
    assert main([*job, *chosen, "--quiet", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["dim"] == 4 * 32
    assert record["resumed_rows"] == record["rows"]
    assert record["feature_options"]["layer"] == [-1, -2]
    manifest = FeatureStore.open(record["store"]).manifest
    assert manifest.fingerprint["extractor"]["options"] == record["feature_options"]
    assert manifest.measured["autocast"] == record["autocast_error"]
    assert 0 < record["autocast_error"]["mean"] <= record["autocast_error"]["max"] < 0.1
    if kind == "bert":
        assert record["feature_options"]["prompt"] == "query: "
        assert "no text was truncated" in screen and "the longest" in screen
        assert (manifest.max_length, record["tokens"]["truncated"]) == (None, 0)
        assert main([*job, "--max-length", "16", "--quiet"]) == 0
        cut = capsys.readouterr().out
        assert "of the texts were truncated" in cut and "of all tokens lost" in cut
    assert main(["info", record["store"], "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    assert facts["autocast"] == record["autocast_error"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TEXT_KINDS, *IMAGE_KINDS, "st", "timm"])
def test_every_adapter_is_fitted_saved_and_loaded(
    kind: str,
    backbones: dict[str, str],
    reviews: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = pictures if kind in (*IMAGE_KINDS, "timm") else reviews
    options = ["--normalize", "l2"] + (["--max-length", "16"] if data == reviews else [])
    job = ["fit", str(data), "--backbone", backbones[kind], "--out", str(tmp_path / "head")]
    quick = ["--n-gates", "4", "--beta", "0.1", "--tolerance", "0.01", "--json", "--quiet"]
    assert main([*job, *options, *quick]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["feature_options"]["normalize"] == "l2"
    pipeline = ConvexHeadPipeline.from_pretrained(tmp_path / "head", device="cpu")
    item: Any = "a fine film" if data == reviews else next(pictures.rglob("*.png"))
    answer: Any = pipeline(item)
    assert answer["label"] in pipeline.classes
    # The head saw scaled features, so the pipeline must scale them too.
    assert np.linalg.norm(pipeline._extractor.encode([pipeline._extractor.prepare(item)])) == (
        pytest.approx(1, rel=1e-5)
    )


# ---- options -------------------------------------------------------------------------------------


def test_layers_are_numbers_with_commas_on_the_command_line_and_in_toml(tmp_path: Path) -> None:
    for written in ("-1,-4", " -1 , -4 "):
        assert parse_layers(written) == (-1, -4)
    config = load_config(ExtractConfig, None, {"data": "imdb", "layer": "-1,-4", "pooling": "gem"})
    assert config.feature_options().layer == (-1, -4)
    (tmp_path / "a.toml").write_text(to_toml(config))
    assert load_config(ExtractConfig, tmp_path / "a.toml") == config
    (tmp_path / "b.toml").write_text('data = "imdb"\nlayer = -2\n')
    assert load_config(ExtractConfig, tmp_path / "b.toml").feature_options().layer == (-2,)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--layer", "last"], "--layer last: must be whole numbers"),
        (["--layer", "-1,-1"], "--layer -1,-1: a layer is named twice"),
        (["--pooling", "avg"], "--pooling avg: must be"),
        (["--max-length", "2"], "--max-length 2: must be at least 4"),
        (["--long-text", "split"], "--long-text split: must be"),
        (["--autocast", "int8"], "--autocast int8: must be"),
        (["--quantize", "int4"], "--quantize int4: must be"),
        (["--quantize", "int8", "--autocast", "bfloat16"], "--autocast and --quantize: choose"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_data_are_read(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract", "no/such/file.csv", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.splitlines()) == 1


def test_options_from_a_newer_version_are_refused() -> None:
    assert FeatureOptions.from_chosen({"layer": [-1, -4]}).layer == (-1, -4)
    with pytest.raises(InputError, match="the option 'whiten', which this version"):
        FeatureOptions.from_chosen({"whiten": True})
    with pytest.raises(InputError, match="the option 'trust_remote_code'"):
        FeatureOptions.from_chosen({"trust_remote_code": "somebody/else"})


def test_minilm_takes_every_option_of_a_transformer(tmp_path: Path) -> None:
    texts = ["a fine film", "the dull film went on and on; " * 60, ""]

    def encode(**options: Any) -> np.ndarray:
        extractor = load_extractor("minilm", device="cpu", options=FeatureOptions(**options))
        alone = np.concatenate([extractor.encode([text]) for text in texts])
        assert row_errors(extractor.encode(texts), alone) <= 1e-5
        return alone

    own = encode()
    assert row_errors(encode(layer=(-1,), pooling="mean"), own) <= 1e-6
    unscaled = encode(normalize="none")
    assert row_errors(unscaled / np.linalg.norm(unscaled, axis=1, keepdims=True), own) <= 1e-5
    assert encode(layer=(-1, -4)).shape == (3, 768)
    assert row_errors(encode(prompt="query: "), own) > 1e-2
    long = encode(long_text="windows")
    assert row_errors(long[[0, 2]], own[[0, 2]]) <= 1e-6
    assert row_errors(long[1:2], own[1:2]) > 1e-3
    with pytest.raises(InputError, match="reads at most 512 tokens"):
        encode(max_length=600)
    with pytest.raises(InputError, match="minilm has no projection"):
        encode(projection="after")


def test_a_sentence_transformer_reads_as_far_as_its_positions_go(
    backbones: dict[str, str], home: Path
) -> None:
    text = "the dull film went on and on; " * 9
    for kind, most in (("bert", 40), ("roberta", 38)):
        whole = load_extractor(f"hf:{home / kind}", device="cpu")
        found = [
            load_extractor(
                f"{source}:{home / kind}", device="cpu", options=FeatureOptions(max_length=most)
            ).encode([text])
            for source in ("st", "hf")
        ]
        assert row_errors(found[0], found[1]) <= 1e-5
        assert row_errors(found[0], whole.encode([text])) <= 1e-5
        longer = FeatureOptions(max_length=most + 1)
        with pytest.raises(InputError, match=f"reads at most {most} tokens"):
            load_extractor(f"st:{home / kind}", device="cpu", options=longer).encode([text])


def test_old_manifests_without_measurements_are_read(tmp_path: Path) -> None:
    rows = Rows(ids=["a", "b"], inputs=["good", "bad"], labels=np.array([1, 0]))
    done = extract(
        {"train": rows}, load_extractor("toy:text-4"), task="demo", classes=("bad", "good"),
        data_fingerprint={"sha256": "0"}, cache_dir=tmp_path,
    )  # fmt: skip
    path = done.store.path / "manifest.json"
    values = json.loads(path.read_text())
    assert values.pop("measured") == {"tokens": done.tokens}
    del values["sha256"]
    path.write_text(json.dumps({**values, "schema_version": 2}))
    assert FeatureStore.open(done.store.path).manifest.measured == {}
