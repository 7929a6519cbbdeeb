"""Rows of two texts: encoded apart and combined, from the file to the saved head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import CORPUS, save_backbone

from extractors import BadRow, FeatureOptions, FeatureStore, InputError, load_extractor
from extractors.blocks import CutBackbone
from extractors.encode import encode_rows
from extractors.graph import backbone_graph
from extractors.pairs import PAIR_SEPARATOR, PairExtractor
from tasks import ConvexHeadPipeline
from tasks.cli import main
from tasks.methods.backbones import _cut
from tasks.methods.base import Backbone, Part, Problem, Unavailable

PAIRS = FeatureOptions(pairs="embeddings")
SHORT, LONG = CORPUS[0][:20], " ".join(CORPUS * 3)  # the second is cut at 40 tokens


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_backbone("bert", tmp_path_factory.mktemp("models"))


def joined(first: str, second: str) -> str:
    return f"{first}{PAIR_SEPARATOR}{second}"


# ---- the extractor ----


@pytest.mark.parametrize("kind", ["bert", "sentence", "gpt2", "toy"])
def test_a_pair_is_both_vectors_their_distance_and_their_product(kind, tmp_path):
    name = "toy:text-8" if kind == "toy" else save_backbone(kind, tmp_path)
    one = load_extractor(name, device="cpu")
    both = load_extractor(name, device="cpu", options=PAIRS)
    rows = [(CORPUS[i], CORPUS[k]) for i in range(4) for k in range(4)]
    found = encode_rows(both, [joined(*row) for row in rows], [str(row) for row in rows])
    u, v = (one.encode([one.prepare(row[side]) for row in rows]) for side in (0, 1))
    assert both.dim == 4 * one.dim == found.features.shape[1]
    expected = np.hstack([u, v, np.abs(u - v), u * v])
    np.testing.assert_allclose(found.features, expected, atol=1e-5 * np.abs(expected).max())
    assert found.features.dtype == np.float32
    swapped = both.encode([both.prepare(joined(*rows[1][::-1]))])[0]
    d = one.dim
    np.testing.assert_allclose(swapped[d : 2 * d], found.features[1, :d], atol=1e-4)
    assert np.abs(swapped[:d] - found.features[1, :d]).max() > 1e-2
    np.testing.assert_allclose(swapped[2 * d :], found.features[1, 2 * d :], atol=1e-4)


def test_a_row_has_one_vector_whatever_its_neighbours(bert):
    both = load_extractor(bert, device="cpu", options=PAIRS)
    rows = [joined(CORPUS[i % 4], f"{CORPUS[i % 3]} {i // 7}") for i in range(40)]
    alone = np.concatenate([both.encode([both.prepare(row)]) for row in rows])
    together = encode_rows(both, rows, rows).features
    np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(alone).max())


def test_each_text_is_encoded_once_and_the_longer_one_counts(bert, monkeypatch):
    both = load_extractor(bert, device="cpu", options=PAIRS)
    assert isinstance(both, PairExtractor)
    one = load_extractor(bert, device="cpu")
    rows = [(SHORT, LONG), (LONG, SHORT), (SHORT, SHORT)]
    counts = both.token_counts([both.prepare(row) for row in rows])
    each = one.token_counts([SHORT, LONG])
    assert counts is not None and each is not None
    short, long = each.tolist()
    assert counts.tolist() == [long, long, short]
    assert long > both.max_length == one.max_length == 40
    read: list[int] = []
    encode = both.inner.encode
    monkeypatch.setattr(
        both.inner, "encode", lambda batch: read.append(len(batch)) or encode(batch)
    )
    both.encode([both.prepare(row) for row in rows])
    assert sum(read) == 2


def test_the_fingerprint_knows_pairs_and_leaves_others_as_they_are(bert):
    plain = load_extractor(bert).fingerprint()
    paired = load_extractor(bert, options=PAIRS).fingerprint()
    assert "pairs" not in plain and "options" not in plain
    assert paired["options"] == {"pairs": "embeddings"}
    assert {key: paired[key] for key in plain} == plain
    again = FeatureOptions.from_chosen(paired["options"])
    assert load_extractor(bert, options=again).fingerprint() == paired
    more = FeatureOptions(pairs="embeddings", pooling="cls")
    options = load_extractor(bert, options=more).fingerprint()["options"]
    assert options == {"pairs": "embeddings", "pooling": "cls"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a fine film", "a pair of texts expected, got one .*--text-column A\\+B"),
        ("a [SEP] b [SEP] c", "several '\\[SEP\\]'"),
        ("a [SEP] [SEP] b", "several '\\[SEP\\]'"),
        (("a", "b", "c"), "a pair of texts expected, got tuple"),
        (7, "a pair of texts expected, got int"),
        (("a", 7), "text expected, got int"),
        ("a [SEP] \ud800", "not valid Unicode"),
    ],
)
def test_rows_that_are_no_pair_are_refused(row, reason, bert):
    with pytest.raises(BadRow, match=reason):
        load_extractor(bert, options=PAIRS).prepare(row)


def test_one_side_may_be_empty_and_a_half_that_gives_nan_is_named(monkeypatch):
    both = load_extractor("toy:text-4", options=PAIRS)
    assert isinstance(both, PairExtractor)
    assert both.prepare("why? [SEP] ") == ("why?", "")
    encode = both.inner.encode

    def broken(texts):
        found = encode(texts)
        found[[text == "bad" for text in texts]] = np.nan
        return found

    monkeypatch.setattr(both.inner, "encode", broken)
    rows = [("good", "fine"), ("fine", "bad"), ("good", "good")]
    found = encode_rows(both, rows, ["x", "y", "z"], on_bad_row="skip")
    assert found.kept.tolist() == [0, 2]
    assert "NaN" in found.skipped["y"]


def test_what_cannot_read_pairs_says_so(bert, tmp_path):
    with pytest.raises(InputError, match="toy:image-32 reads image rows, and pairs are of texts"):
        load_extractor("toy:image", options=PAIRS)
    with pytest.raises(InputError, match="pairs both: must be one of text, embeddings"):
        FeatureOptions(pairs="both")  # pyright: ignore[reportArgumentType]
    both = load_extractor(bert, device="cpu", options=PAIRS)
    with pytest.raises(InputError, match="blocks are trained with pairs text"):
        CutBackbone(both, 1, [("a", "b")])
    with pytest.raises(InputError, match="apart, which no single forward pass does"):
        backbone_graph(both)
    part = Part(np.zeros((2, 4), np.float32), np.array([0, 1]), [joined("a", "b")] * 2)
    problem = Problem(part, part, 2, 0, backbone=Backbone(bert, PAIRS.chosen(), "cpu"))
    with pytest.raises(Unavailable, match="pairs text"):
        _cut(problem, 1)


def test_the_error_of_half_precision_is_that_of_pairs(bert):
    half = load_extractor(
        bert, device="cpu", options=FeatureOptions(pairs="embeddings", autocast="bfloat16")
    )
    assert isinstance(half, PairExtractor)
    exact = half.exact()
    assert exact is not None
    assert exact.fingerprint()["options"] == {"pairs": "embeddings"}
    assert load_extractor("toy:text-4", options=PAIRS).exact() is None  # pyright: ignore


# ---- from a file to a saved head ----

ANIMALS = ("ants", "bees", "film", "family", "day", "houses")


def questions(rows: int) -> list[tuple[str, str, str]]:
    """Pairs whose label is whether both texts are of the same thing."""
    found = []
    for i in range(rows):
        thing, same = ANIMALS[i % 6], i % 2 == 0
        other = thing if same else ANIMALS[(i + 1 + i // 6 % 5) % 6]
        label = "same" if same else "other"
        found.append((f"what of the {thing} and {i}", f"the {other} live", label))
    return found


def as_csv(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = ["question,answer,label", *(",".join(row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def fitted(bert, tmp_path_factory) -> tuple[dict, Path, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    data = as_csv(folder / "questions.csv", questions(120))
    out = folder / "head"
    arguments = ["fit", str(data), "--backbone", bert, "--text-column", "question+answer"]
    arguments += ["--pairs", "embeddings", "--out", str(out), "--n-gates", "8", "--beta", "0.05"]
    assert main([*arguments, "--no-leak-check", "--quiet"]) == 0
    return json.loads((out / "config.json").read_text()), out, folder


def test_the_artefact_predicts_pairs_from_a_file_from_texts_and_in_python(fitted, bert, capsys):
    config, out, folder = fitted
    assert config["backbone_options"] == {"pairs": "embeddings"}
    assert config["record"]["dim"] == 4 * 32
    store = FeatureStore.open(Path(config["stores"][0]))
    assert store.manifest.fingerprint["extractor"]["options"] == {"pairs": "embeddings"}
    assert 'classifier("first text [SEP] second text")' in (out / "README.md").read_text()

    pairs = [row[:2] for row in questions(6)]
    new = as_csv(folder / "new.csv", questions(6))
    capsys.readouterr()
    assert main(["predict", str(out), "--input", str(new), "--json"]) == 0
    scores = [p["probabilities"] for p in json.loads(capsys.readouterr().out)["predictions"]]
    classifier = ConvexHeadPipeline.from_pretrained(out, device="cpu")
    one = load_extractor(bert, device="cpu")
    u, v = (one.encode([pair[side] for pair in pairs]) for side in (0, 1))
    by_hand = classifier.head.predict_proba(np.hstack([u, v, np.abs(u - v), u * v]))
    from_file = [[score[name] for name in classifier.classes] for score in scores]
    np.testing.assert_allclose(from_file, by_hand, atol=1e-4)
    in_python = classifier.predict_proba([joined(*pair) for pair in pairs])
    np.testing.assert_allclose(in_python, by_hand, atol=1e-4)
    np.testing.assert_array_equal(classifier.predict_proba(pairs), in_python)

    text = joined(*pairs[1])
    assert main(["predict", str(out), "--text", text, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"][0]
    assert found["label"] == classifier(text)["label"]  # pyright: ignore

    classifier.save_pretrained(folder / "copy")
    copy = ConvexHeadPipeline.from_pretrained(folder / "copy", device="cpu")
    np.testing.assert_array_equal(copy.predict_proba(pairs), in_python)

    assert main(["evaluate", str(out), str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 6


def test_one_text_is_refused_in_words(fitted, tmp_path, capsys):
    _, out, _ = fitted
    assert main(["predict", str(out), "--text", "what of the ants"]) == 2
    assert "a pair of texts expected, got one" in capsys.readouterr().err
    (tmp_path / "single.csv").write_text("text,label\na fine film,same\n")
    assert main(["predict", str(out), "--input", str(tmp_path / "single.csv")]) == 2
    assert "--text-column A+B" in capsys.readouterr().err
    arguments = ["--backbone", "toy:text-8", "--pairs", "embeddings", "--out", str(tmp_path / "x")]
    assert main(["fit", "digits", *arguments]) == 2
    assert main(["fit", "wordnet6", "--train-rows", "60", "--test-rows", "10", *arguments]) == 2
    assert "a pair of texts expected" in capsys.readouterr().err


def test_serve_answers_pairs_and_refuses_single_texts(fitted):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx2")
    from fastapi.testclient import TestClient

    from tasks.config_saved import ServeConfig
    from tasks.serving.server import make_app

    _, out, _ = fitted
    pipeline = ConvexHeadPipeline.from_pretrained(out, device="cpu")
    with TestClient(make_app(pipeline, ServeConfig(artefact=str(out)))) as client:
        pair = joined("what of the ants and 1", "the bees live")
        answer = client.post("/predict", json={"inputs": [pair]}).json()["predictions"][0]
        expected = pipeline(pair)
        assert isinstance(expected, dict)
        assert answer["label"] == expected["label"]
        assert answer["score"] == pytest.approx(expected["score"], abs=1e-5)
        refused = client.post("/predict", json={"inputs": ["what of the ants"]})
        assert refused.status_code == 422
        assert "a pair of texts expected" in refused.json()["error"]
        assert "First text [SEP] second text" in client.get("/").text


def test_a_named_task_remembers_its_two_columns(tmp_path, capsys):
    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "data" / "rte"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        columns = zip(*questions(60), strict=True)
        table = dict(zip(("sentence1", "sentence2", "label"), map(list, columns), strict=True))
        parquet.write_table(pa.table(table), folder / f"{split}.parquet")
    out = tmp_path / "head"
    arguments = [
        "--data-root",
        str(tmp_path / "data"),
        "--backbone",
        "toy:text-8",
        "--n-gates",
        "4",
    ]
    arguments += ["--beta", "0.1", "--no-leak-check", "--out", str(out), "--quiet"]
    assert main(["fit", "rte", *arguments]) == 0
    capsys.readouterr()
    (tmp_path / "new.csv").write_text("sentence1,sentence2,text\nwhy,so,neither\n")
    assert main(["predict", str(out), "--input", str(tmp_path / "new.csv"), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)["predictions"][0]["score"]
    classifier = ConvexHeadPipeline.from_pretrained(out)
    assert score == pytest.approx(classifier("why [SEP] so")["score"], abs=1e-6)  # pyright: ignore
