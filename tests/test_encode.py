"""Encoding beside tokenising, several passes beside each other, linear layers in int8."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rows import row_errors
from tiny_models import save_image_model, save_text_model

from extractors import FeatureOptions, FeatureStore, InputError, Rows, load_extractor
from extractors.encode import Chunk, encode_chunks, encode_rows
from extractors.extract import extract
from extractors.stream import StreamRow, extract_stream
from extractors.text import count_tokens
from extractors.tokens import batches_of_tokens
from extractors.toy import ToyText

TEXTS = [" ".join(["fine film", "a dull one"][i % 2] for _ in range(i % 23)) for i in range(60)]
IDS = [f"row/{i}" for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"hf:{save_text_model('bert', tmp_path_factory.mktemp('bert') / 'bert')}"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def load(name: str, **options: Any) -> Any:
    return load_extractor(name, device="cpu", options=FeatureOptions(**options))


def test_batches_hold_every_row_once_and_stay_within_their_budget() -> None:
    tokens = np.random.default_rng(0).integers(1, 300, 500)
    batches = batches_of_tokens(tokens, 512)
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(len(b) == 1 or len(b) * tokens[b].max() <= 512 for b in batches)
    assert sum(len(b) * tokens[b].max() for b in batches) < 1.02 * tokens.sum()


@pytest.mark.parametrize("options", [{}, {"long_text": "windows", "max_length": 12}], ids=str)
def test_passes_beside_each_other_give_the_vector_of_a_row_alone(
    bert: str, options: dict[str, Any], two_threads: None
) -> None:
    extractor = load(bert, **options)
    met = threading.Barrier(2, timeout=30)
    calls: list[str] = []
    encode = extractor.encode
    alone = np.concatenate([encode([text]) for text in TEXTS])

    def watched(prepared: Sequence[Any]) -> np.ndarray:
        if threading.current_thread() is not threading.main_thread():
            calls.append(threading.current_thread().name)
            if len(calls) <= 2:
                met.wait()  # nobody comes unless two passes run at the same time
        return encode(prepared)

    extractor.encode = watched
    together = encode_rows(extractor, TEXTS, IDS)
    assert len(set(calls)) == 2
    assert torch.get_num_threads() == 2  # as it was
    assert row_errors(together.features, alone) <= 1e-5
    assert together.tokens is not None
    np.testing.assert_array_equal(together.tokens, extractor.token_counts(TEXTS))


def test_tokens_that_are_cut_off_are_counted(bert: str) -> None:
    extractor = load(bert, max_length=8)
    rows, counts = extractor.tokenize(TEXTS)
    assert max(len(row["input_ids"]) for row in rows) == 8 < counts.max()
    np.testing.assert_array_equal(counts, count_tokens(extractor._tokenizer, TEXTS))
    np.testing.assert_array_equal(extractor.encode(rows), extractor.encode(TEXTS))


def test_images_beside_each_other_are_the_images_alone(tmp_path: Path, two_threads: None) -> None:
    extractor = load(f"hf:{save_image_model('vit', tmp_path / 'vit')}")
    images = list(np.random.default_rng(0).integers(0, 256, (21, 20, 30, 3), dtype=np.uint8))
    alone = np.concatenate([extractor.encode([extractor.prepare(i)]) for i in images])
    together = encode_rows(extractor, images, IDS[:21]).features
    assert row_errors(together, alone) <= 1e-5


def test_a_bad_row_stops_all_passes(bert: str, two_threads: None) -> None:
    inputs = [*TEXTS[:30], None, *TEXTS[30:]]
    ids = [str(i) for i in range(len(inputs))]
    with pytest.raises(InputError, match="row '30' cannot be encoded: text expected"):
        encode_rows(load(bert), inputs, ids)
    assert torch.get_num_threads() == 2
    done = encode_rows(load(bert), inputs, ids, on_bad_row="skip")
    assert done.kept.tolist() == [i for i in range(61) if i != 30]


def test_what_comes_before_a_source_that_fails_is_encoded() -> None:
    def source() -> Iterator[Chunk]:
        for name in "abc":
            yield Chunk("train", [name], ["fine"], np.zeros(1, np.int64))
        raise ConnectionError("gone")

    done = []
    with pytest.raises(ConnectionError):  # noqa: PT012
        for chunk, encoded in encode_chunks(ToyText(4), source()):
            done.append((chunk.ids[0], encoded.features.shape))
    assert done == [("a", (1, 4)), ("b", (1, 4)), ("c", (1, 4))]


# ---- int8 ----------------------------------------------------------------------------------------


def test_int8_layers_are_close_and_their_products_exact() -> None:
    from extractors.quantize import Int8Linear

    torch.manual_seed(0)
    plain = torch.nn.Linear(96, 40)
    found = Int8Linear(plain)
    x = torch.randn(5, 7, 96) * torch.logspace(-3, 3, 7)[:, None]  # tokens of any size
    x[0, 0] = 0
    with torch.no_grad():
        exact, rounded = plain(x), found(x)
        assert rounded.shape == exact.shape
        error = (rounded - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert error.max() < 0.02
        assert torch.equal(rounded[0, 0], exact[0, 0])
        # integers that need no rounding: the product itself loses nothing
        whole = torch.randint(-127, 128, (3, 96)).float()
        whole[:, 0] = 127
        plain.weight.copy_(torch.randint(-127, 128, (40, 96)).float())
        plain.weight[:, 0] = 127
        torch.testing.assert_close(Int8Linear(plain)(whole), plain(whole), rtol=1e-6, atol=1e-2)


def test_int8_is_in_the_fingerprint_measured_and_the_same_for_every_batch(
    bert: str, tmp_path: Path, two_threads: None
) -> None:
    int8 = load(bert, quantize="int8")
    assert int8.fingerprint() != load(bert).fingerprint()
    alone = np.concatenate([int8.encode([text]) for text in TEXTS])
    np.testing.assert_array_equal(encode_rows(int8, TEXTS[::-1], IDS).features[::-1], alone)
    exact = int8.exact()
    np.testing.assert_array_equal(exact.encode(TEXTS), load(bert).encode(TEXTS))
    labels = np.zeros(len(TEXTS), int)
    options: dict[str, Any] = {"task": "t", "classes": ("a",), "data_fingerprint": {"n": 1}}
    done = extract({"train": Rows(IDS, TEXTS, labels)}, int8, cache_dir=tmp_path / "a", **options)
    error = FeatureStore.open(done.store.path).manifest.measured["quantize"]
    assert done.error == error
    assert 1e-5 < error["mean"] <= error["max"] < 0.2
    stream = (StreamRow(name, "train", text, 0) for name, text in zip(IDS, TEXTS, strict=True))
    same = extract_stream(stream, int8, cache_dir=tmp_path / "b", **options)
    assert same.store.manifest.measured == done.store.manifest.measured
    assert (same.tokens, same.error) == (done.tokens, done.error)


def test_int8_where_it_cannot_be_is_refused(tmp_path: Path, bert: str) -> None:
    gpt2 = f"hf:{save_text_model('gpt2', tmp_path / 'gpt2')}"
    with pytest.raises(InputError, match=r"quantize int8: .*gpt2 has no linear layers"):
        load(gpt2, quantize="int8").encode(["a"])
    from extractors.quantize import quantize_linear

    with pytest.raises(InputError, match="is for CPUs and this is cuda:1"):
        quantize_linear(torch.nn.Linear(2, 2), "bert", "cuda:1")
