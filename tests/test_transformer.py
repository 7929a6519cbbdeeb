"""Text backbones through transformers: four random architectures against plain computations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import row_errors
from tiny_models import POSITIONS, TEXT_KINDS, save_text_model

from extractors import InputError, load_extractor
from extractors.encode import encode_rows
from extractors.options import FeatureOptions
from extractors.transformer import TransformerTextExtractor

LIMIT = {"bert": POSITIONS, "roberta": POSITIONS - 2, "gpt2": POSITIONS, "llama": POSITIONS}
TEXTS = [
    "a fine film",
    "a",
    "the dull film went on and on; " * 9,
    "what a wonderful day, and yet nobody would want to miss the end of it",
    "",
    "ants and bees",
    "ünknown ✓ words \n and lines",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("text models")
    return {kind: save_text_model(kind, home / kind) for kind in TEXT_KINDS}


def load(folder: Path, **options: Any) -> TransformerTextExtractor:
    found = load_extractor(f"hf:{folder}", device="cpu", options=FeatureOptions(**options))
    assert isinstance(found, TransformerTextExtractor)
    return found


def hidden_states(folder: Path, texts: list[str], limit: int) -> list[list[np.ndarray]]:
    """Per text, its L + 1 hidden states (t, d): one text at a time, no padding, float64."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    found = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=limit)["input_ids"]
        ids = ids or [tokenizer.eos_token_id]
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        states = [state[0].numpy() for state in out.hidden_states]
        states[-1] = out.last_hidden_state[0].numpy()
        found.append(states)
    return found


def power_mean(values: np.ndarray) -> np.ndarray:
    return np.cbrt((values**3).mean(0))


POOLINGS = {
    "mean": lambda h: h.mean(0),
    "cls": lambda h: h[0],
    "last": lambda h: h[-1],
    "max": lambda h: h.max(0),
    "cls+mean": lambda h: np.concatenate([h[0], h.mean(0)]),
    "gem": lambda h: power_mean(np.maximum(h, 0)) - power_mean(np.maximum(-h, 0)),
}


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_every_pooling_and_layer_is_that_of_each_text_alone(
    kind: str, folders: dict[str, Path]
) -> None:
    states = hidden_states(folders[kind], TEXTS, LIMIT[kind])
    for how, formula in POOLINGS.items():
        expected = np.array([formula(layers[-1]) for layers in states])
        found = load(folders[kind], pooling=how).encode(TEXTS)
        assert found.dtype == np.float32
        assert row_errors(found, expected) <= 1e-5, how
    expected = np.array(
        [np.concatenate([layers[i].mean(0) for i in (-1, -3, 0)]) for layers in states]
    )
    several = load(folders[kind], layer=(-1, -3, 0))
    assert row_errors(several.encode(TEXTS), expected) <= 1e-5
    assert several.dim == 3 * 32
    # The last layer by its positive number is the same layer.
    again = load(folders[kind], layer=(4,)).encode(TEXTS)
    np.testing.assert_array_equal(again, load(folders[kind], layer=(-1,)).encode(TEXTS))


@pytest.mark.parametrize("kind", TEXT_KINDS)
@pytest.mark.parametrize("options", [{}, {"pooling": "last"}, {"long_text": "windows"}], ids=str)
def test_a_row_has_one_vector_whatever_its_batch_order_and_neighbours(
    kind: str, options: dict[str, Any], folders: dict[str, Path]
) -> None:
    extractor = load(folders[kind], **options)
    texts = [*TEXTS, *(" ".join(TEXTS[3].split()[:n]) for n in range(1, 14))]
    ids = [str(i) for i in range(len(texts))]
    alone = np.concatenate([extractor.encode([text]) for text in texts])
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = np.empty_like(alone)
    shuffled[order] = encode_rows(
        extractor, [texts[i] for i in order], [ids[i] for i in order]
    ).features
    assert row_errors(extractor.encode(texts), alone) <= 1e-5
    assert row_errors(encode_rows(extractor, texts, ids).features, alone) <= 1e-5
    assert row_errors(shuffled, alone) <= 1e-5
    # Beside a text that is fifty times as long.
    assert row_errors(extractor.encode(["a", TEXTS[2]])[:1], extractor.encode(["a"])) <= 1e-5


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_the_limit_is_what_the_positions_allow(kind: str, folders: dict[str, Path]) -> None:
    extractor = load(folders[kind])
    assert extractor.max_length == LIMIT[kind]
    counts = extractor.token_counts(TEXTS)
    assert (counts > LIMIT[kind]).tolist() == [False, False, True, False, False, False, False]
    short = load(folders[kind], max_length=8)
    expected = [states[-1].mean(0) for states in hidden_states(folders[kind], TEXTS, 8)]
    assert short.max_length == 8
    assert row_errors(short.encode(TEXTS), np.array(expected)) <= 1e-5
    with pytest.raises(InputError, match=rf"max_length 99: .* at most {LIMIT[kind]} tokens"):
        load(folders[kind], max_length=99).encode(["a"])


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_windows_read_all_of_a_long_text(kind: str, folders: dict[str, Path]) -> None:
    """The mean over the windows, weighted by their tokens, computed from plain encodings."""
    whole = load(folders[kind])
    windows = load(folders[kind], long_text="windows")
    assert windows.max_length is None
    text = TEXTS[2]
    pieces = windows._windows(text)
    assert len(pieces) > 1
    assert "".join(pieces) == text
    special = int(whole.token_counts([""])[0])
    counts = whole.token_counts(pieces)
    assert (counts <= LIMIT[kind]).all()
    assert (counts - special).sum() == whole.token_counts([text])[0] - special
    weights = (counts - special).astype(np.float64)
    expected = (weights[:, None] * whole.encode(pieces)).sum(0) / weights.sum()
    assert row_errors(windows.encode([text]), expected[None]) <= 1e-5
    # A change after the limit is seen, and a short text is as ever.
    assert row_errors(windows.encode([text + " fine"]), windows.encode([text])) > 1e-4
    assert row_errors(whole.encode([text + " fine"]), whole.encode([text])) <= 1e-5
    np.testing.assert_array_equal(windows.encode(["a fine film"]), whole.encode(["a fine film"]))


def test_a_prompt_is_put_before_every_text_and_every_window(folders: dict[str, Path]) -> None:
    plain, prompted = load(folders["bert"]), load(folders["bert"], prompt="what a ")
    np.testing.assert_array_equal(
        prompted.encode(["fine film"]), plain.encode(["what a fine film"])
    )
    assert prompted.token_counts(["film"]) == plain.token_counts(["what a film"])
    windows = load(folders["bert"], prompt="what a ", long_text="windows")
    pieces = windows._windows(TEXTS[2])
    assert (plain.token_counts([f"what a {piece}" for piece in pieces]) <= POSITIONS).all()
    with pytest.raises(InputError, match="no room for a text"):
        load(folders["bert"], prompt="what a day ", long_text="windows", max_length=6).encode(
            [TEXTS[2]]
        )


def test_l2_gives_unit_vectors_of_the_same_direction(folders: dict[str, Path]) -> None:
    plain = load(folders["llama"]).encode(TEXTS)
    for options in ({}, {"long_text": "windows"}):
        unit = load(folders["llama"], normalize="l2", **options).encode(TEXTS)
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    truncated = load(folders["llama"], normalize="l2").encode(TEXTS)
    assert row_errors(truncated, plain / np.linalg.norm(plain, axis=1, keepdims=True)) <= 1e-5


def test_half_precision_on_disk_is_computed_in_float32(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModel

    half = shutil.copytree(folders["bert"], tmp_path / "half")
    AutoModel.from_pretrained(half, dtype=torch.float16).save_pretrained(half)
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    expected = np.array([s[-1].mean(0) for s in hidden_states(half, TEXTS, POSITIONS)])
    assert row_errors(load(half).encode(TEXTS), expected) <= 1e-5


def test_autocast_is_close_and_its_exact_twin_is_float32(folders: dict[str, Path]) -> None:
    from extractors.precision import measure_error

    plain = load(folders["bert"])
    half = load(folders["bert"], autocast="bfloat16")
    exact = half.exact()
    assert exact is not None
    np.testing.assert_array_equal(exact.encode(TEXTS), plain.encode(TEXTS))
    assert exact._model is half._model
    found = measure_error(half, exact, TEXTS)
    assert found["rows"] == len(TEXTS)
    assert 1e-5 < found["mean"] <= found["max"] < 0.1
    assert plain.exact() is None


def test_every_option_changes_the_fingerprint_and_none_does_not(
    folders: dict[str, Path],
) -> None:
    fingerprints = [
        load(folders["bert"], **options).fingerprint()
        for options in (
            {},
            {"layer": (-1,)},
            {"layer": (-2,)},
            {"layer": (-1, -2)},
            {"pooling": "mean"},
            {"pooling": "cls"},
            {"prompt": "query: "},
            {"normalize": "l2"},
            {"max_length": 16},
            {"long_text": "windows"},
            {"autocast": "bfloat16"},
            {"quantize": "int8"},
        )
    ]
    keys = {json.dumps(found, sort_keys=True) for found in fingerprints}
    assert len(keys) == len(fingerprints)
    assert "options" not in fingerprints[0]
    copy = load(folders["bert"], trust_remote_code=str(folders["bert"])).fingerprint()
    assert copy == fingerprints[0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer": (5,)}, "layer 5: .* has 4 layers; -1 to -4"),
        ({"layer": (-6,)}, "layer -6: .* has 4 layers"),
        ({"projection": "after"}, "projection: the text model .* has no such choice"),
        ({"trust_remote_code": "somebody/else"}, "somebody/else: this backbone is /"),
    ],
    ids=str,
)
def test_what_the_model_does_not_have_is_refused(
    options: dict[str, Any], sentence: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        load(folders["gpt2"], **options).encode(["a"])
    assert "\n" not in str(caught.value)


def test_files_that_lack_weights_or_hold_none_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    part = shutil.copytree(folders["bert"], tmp_path / "part")
    weights = load_file(part / "model.safetensors")
    weights = {name: value for name, value in weights.items() if ".layer.2." not in name}
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack \d+ weights .* encoder.layer.2"):
        load(part).encode(["a"])
    (part / "model.safetensors").unlink()
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load(part).encode(["a"])
    assert "\n" not in str(caught.value)
    (part / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(InputError, match="neither a text nor an image model"):
        load(part)
    (part / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(part)


def test_code_that_comes_with_a_model_runs_only_for_the_one_that_was_named(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    own = shutil.copytree(folders["bert"], tmp_path / "own")
    trace = tmp_path / "it ran"
    (own / "modeling_own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import BertConfig, BertModel\n"
        f"Path({str(trace)!r}).touch()\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own-bert'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
    )
    config = json.loads((own / "config.json").read_text())
    config |= {
        "model_type": "own-bert",
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"},
    }
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="its own Python code, which is not executed"):
        load(own).encode(["a"])
    assert not trace.exists()
    found = load(own, trust_remote_code=str(own)).encode(TEXTS)
    assert trace.exists()
    np.testing.assert_array_equal(found, load(folders["bert"]).encode(TEXTS))


@pytest.mark.parametrize(
    ("file", "key"),
    [("config.json", "AutoModel"), ("tokenizer_config.json", "AutoTokenizer")],
)
def test_trust_in_a_model_is_no_trust_in_the_code_of_another(
    file: str, key: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    trace = tmp_path / "it ran"
    other = tmp_path / "other"
    other.mkdir()
    (other / "mod.py").write_text(
        f"from pathlib import Path\nPath({str(trace)!r}).touch()\n"
        "from transformers import BertModel, BertTokenizerFast\n"
        "class Own(BertModel):\n    pass\nclass OwnTokenizer(BertTokenizerFast):\n    pass\n"
    )
    own = shutil.copytree(folders["bert"], tmp_path / "own")
    config = json.loads((own / file).read_text())
    named = {
        "AutoModel": f"{other}--mod.Own",
        "AutoTokenizer": [None, f"{other}--mod.OwnTokenizer"],
    }
    (own / file).write_text(json.dumps(config | {"auto_map": {key: named[key]}}))
    with pytest.raises(InputError, match=rf"code of another repository, {other}") as caught:
        load(own, trust_remote_code=str(own)).encode(["a"])
    assert "\n" not in str(caught.value)
    assert not trace.exists()
