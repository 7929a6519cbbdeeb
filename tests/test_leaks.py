"""Duplicates between the splits and within train: planted ones are found, clean data give none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from extractors.errors import InputError
from extractors.store import StoredRows
from tasks.cli import main
from tasks.config import FitConfig
from tasks.config_files import as_command, load_config, to_toml
from tasks.console import QuietReporter
from tasks.data import duplicates
from tasks.data.duplicates import FeatureSpace, SeenRows
from tasks.data.leak_words import examples_in_words, leaks_in_words
from tasks.data.leaks import SIMILARITY, check_leaks, find_leaks
from tasks.data.load import load_task
from tasks.records import FitRecord
from tasks.show import show_fit

SCALES = 3 * np.arange(1, 201) ** -0.5
N, DIM = 2600, 200  # wider than the directions that are searched, more rows than a slice
PARTS = {"train": slice(0, 2000), "validation": slice(2000, 2200), "test": slice(2200, 2600)}


def clean(seed: int = 0) -> np.ndarray:
    """Rows that are all different, with the long-tailed spectrum and the offset of features."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((N, DIM)) * SCALES + 5).astype(np.float32)


def nearly(row: np.ndarray, rng: np.random.Generator, noise: float = 0.1) -> np.ndarray:
    """A copy with a cosine of about 1 / sqrt(1 + noise ** 2), 0.995 by default."""
    return (row + noise * rng.standard_normal(DIM) * SCALES).astype(np.float32)


def splits(X: np.ndarray, labels: np.ndarray | None = None) -> dict[str, StoredRows]:
    labels = np.zeros(len(X), np.int64) if labels is None else labels
    ids = [f"row/{i:04d}" for i in range(len(X))]
    return {
        name: StoredRows(ids[part], labels[part], X[part], None) for name, part in PARTS.items()
    }


def brute(X: np.ndarray, others: np.ndarray, space: FeatureSpace) -> np.ndarray:
    """Cosines in double precision, all of them: what the search is compared with."""
    A, B = (space.unit(Z).astype(np.float64) for Z in (X, others))
    return A @ B.T


def test_clean_data_have_no_duplicates():
    found = find_leaks(splits(clean()))
    assert set(found.counts.values()) == {(0, 0)}
    assert not any(map(len, found.remove.values()))
    assert found.similarity == SIMILARITY and found.complete
    said = leaks_in_words(found.as_record())
    assert said == "no duplicates between the splits or within train"


def test_planted_exact_and_near_duplicates_are_found_where_they_are():
    X, rng = clean(), np.random.default_rng(1)
    X[2210], X[2590] = X[17], X[1999]  # test rows 10 and 390
    X[2250] = nearly(X[1234], rng)  # test row 50
    X[2001] = nearly(X[3], rng)  # validation row 1
    X[2300] = X[2199]  # test row 100 in validation
    X[700], X[1500] = X[600], nearly(X[600], rng)
    labels = np.zeros(N, np.int64)
    labels[2250] = 1
    found = find_leaks(splits(X, labels))
    assert found.counts == {
        ("test", "train"): (2, 1),
        ("test", "validation"): (1, 0),
        ("validation", "train"): (0, 1),
        ("train", "train"): (1, 1),
    }
    assert {pair: rows.tolist() for pair, rows in found.leaking.items()} == {
        ("test", "train"): [10, 50, 390],
        ("test", "validation"): [100],
        ("validation", "train"): [1],
        ("train", "train"): [700, 1500],
    }
    assert found.other_label == 1
    first, second = found.examples["test", "train"]
    assert (first.row, first.twin, first.similarity) == ("row/2210", "row/0017", 1.0)
    assert (second.row, second.twin) == ("row/2590", "row/1999")
    (near,) = found.examples["validation", "train"]
    assert (near.row, near.twin) == ("row/2001", "row/0003")
    assert SIMILARITY <= near.similarity < 0.9999
    X[2001] = X[3] * np.linspace(0.9993, 1.0007, X.shape[1])  # 1.0000, but no copy
    (near,) = find_leaks(splits(X, labels)).examples["validation", "train"]
    assert near.similarity == 0.9999
    X[2001] = nearly(X[3], rng)
    # Without these rows nothing leaks, and nothing more than that is taken out.
    assert found.remove["train"].tolist() == [3, 17, 700, 1234, 1500, 1999]
    assert found.remove["validation"].tolist() == [199]


def test_every_train_row_that_a_test_row_repeats_is_taken_out():
    X = clean()
    X[[5, 900, 1900]] = X[2400]
    X[2401] = X[2400]
    _, rows = check_leaks(splits(X), drop=True, reporter=QuietReporter())
    assert not {"row/0005", "row/0900", "row/1900"} & set(rows["train"].ids)
    assert len(rows["train"].ids) == 1997
    for name, part in rows.items():  # what belongs to a row stays with it
        assert all(np.array_equal(part.features[i], X[int(part.ids[i][4:])]) for i in range(50)), (
            name
        )
    again, same = check_leaks(rows, drop=True, reporter=QuietReporter())
    assert not again["examples"] and len(same["train"].ids) == 1997


@pytest.mark.parametrize("block", [64, 4096])
def test_the_search_finds_what_brute_force_finds(monkeypatch, block):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    X, rng = clean(2), np.random.default_rng(3)
    for _ in range(300):  # copies of copies, some just above and some just below the threshold
        i, j = rng.choice(N, 2, replace=False)
        X[j] = nearly(X[i], rng, rng.uniform(0.05, 0.25))
    train, test = X[PARTS["train"]], X[PARTS["test"]]
    space = FeatureSpace(train)
    seen = SeenRows(space, len(train))
    within = seen.earlier_twins(train, SIMILARITY)
    across = seen.twins(test, SIMILARITY)
    C = np.tril(brute(train, train, space), -1)
    for twins, cosines in ((within, C), (across, brute(test, train, space))):
        sure = np.abs(cosines.max(axis=1) - SIMILARITY) > 1e-5
        expected = cosines.max(axis=1) >= SIMILARITY
        assert expected.sum() > 20
        assert ((twins.of >= 0) == expected)[sure].all()
        rows = np.flatnonzero(twins.of >= 0)
        told = cosines[rows, twins.of[rows]]
        np.testing.assert_allclose(twins.similarity[rows], told, atol=1e-5)
        assert (told >= SIMILARITY - 1e-5).all()


def test_beyond_the_exact_rows_an_index_finds_the_planted_ones(monkeypatch):
    monkeypatch.setattr(duplicates, "EXACT_ROWS", 500)
    X, rng = clean(), np.random.default_rng(1)
    X[2210], X[2250], X[700] = X[17], nearly(X[1234], rng), X[600]
    found = find_leaks(splits(X))
    assert not found.complete
    assert found.leaking["test", "train"].tolist() == [10, 50]
    assert found.leaking["train", "train"].tolist() == [700]
    assert "can miss some" in leaks_in_words(found.as_record())


def test_a_raw_row_that_repeats_is_exact_whatever_the_search_says():
    X = clean()
    digests = {name: [b"%d" % i for i in range(N)][part] for name, part in PARTS.items()}
    digests["test"][7] = digests["train"][1000]
    digests["train"][42] = digests["train"][41]
    found = find_leaks(splits(X), digests)
    assert found.leaking["test", "train"].tolist() == [7]
    assert found.leaking["train", "train"].tolist() == [42]
    assert found.remove["train"].tolist() == [42, 1000]
    assert found.counts["test", "train"] == (1, 0)
    with pytest.raises(ValueError, match="1 digests for 200 validation rows"):
        find_leaks(splits(X), digests | {"validation": [b""]})


def test_features_that_cannot_tell_rows_apart_raise_no_alarm():
    # In a plane every row has others in nearly its direction.
    X = clean()[:, :2].copy()
    X[2210] = X[17]
    found = find_leaks(splits(X))
    assert found.similarity is None
    assert found.leaking["test", "train"].tolist() == [10]
    assert found.remove["train"].tolist() == [17]
    assert sum(near for _, near in found.counts.values()) == 0
    assert "only exact ones were looked for" in leaks_in_words(found.as_record())


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_rows_that_are_all_the_same_are_said_to_be(constant):
    found = find_leaks(splits(np.full((N, DIM), constant, np.float32)))
    assert found.counts["test", "train"] == (400, 0)
    assert found.counts["train", "train"] == (1999, 0)
    with pytest.raises(InputError, match="leave no train rows"):
        check_leaks(
            splits(np.full((N, DIM), constant, np.float32)), drop=True, reporter=QuietReporter()
        )


def test_words_show_two_examples_with_their_texts():
    X = clean()
    X[2210:2215] = X[10:15]
    record, _ = check_leaks(splits(X), reporter=QuietReporter())
    texts = {"test": {"row/2210": "so  dull" + " very" * 30}, "train": {"row/0010": "so dull"}}
    first, second = examples_in_words(record, texts)
    assert first.startswith("row/2210 (test) 'so dull very")
    assert first.endswith("row/0010 (train) 'so dull': exact")
    assert "..." in first and len(first) < 150
    assert second == "row/2211 (test) and row/0011 (train): exact"
    assert leaks_in_words(record).startswith("5 of 400 test rows are in train too (5 exact)")


def test_known_repeats_of_a_real_data_set_are_counted(shared_data):
    # 10 of its questions are in both files.
    data = load_task("trec6", data_root=shared_data)
    rng = np.random.default_rng(0)  # features that say nothing: the raw rows do
    rows = {
        name: StoredRows(
            list(part.ids),
            part.labels,
            rng.standard_normal((len(part), 30)).astype(np.float32),
            None,
        )
        for name, part in data.splits.items()
    }
    found = find_leaks(rows, data.digests)
    texts = {name: set(part.inputs) for name, part in data.splits.items()}
    for split, of in (("test", "train"), ("test", "validation"), ("validation", "train")):
        expected = [i for i, text in enumerate(data.splits[split].inputs) if text in texts[of]]
        assert found.leaking[split, of].tolist() == expected
    train = data.splits["train"].inputs
    assert found.counts["train", "train"] == (len(train) - len(set(train)), 0)
    assert len(found.leaking["test", "train"]) + len(found.leaking["test", "validation"]) >= 10


def test_options_of_the_check_survive_command_line_and_toml(tmp_path):
    config = FitConfig(data="imdb", drop_leaks=True)
    assert as_command("fit", config) == "convex-heads fit imdb --drop-leaks"
    off = FitConfig(data="imdb", leak_check=False)
    assert as_command("fit", off) == "convex-heads fit imdb --no-leak-check"
    for each in (config, off):
        path = tmp_path / "options.toml"
        path.write_text(to_toml(each))
        assert load_config(FitConfig, path) == each
    with pytest.raises(InputError, match="drop_leaks needs the leak check"):
        FitConfig(data="imdb", leak_check=False, drop_leaks=True)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    """Three files of texts; one train row is in test, one is in train twice."""
    rng = np.random.default_rng(0)
    words = np.array([a + b + c for a in "bdfgk" for b in "aeiou" for c in "lmnrt"])
    folder = tmp_path_factory.mktemp("own")
    sizes = {"train": 120, "validation": 40, "test": 40}
    rows = {name: [" ".join(rng.choice(words, 12)) for _ in range(n)] for name, n in sizes.items()}
    rows["test"][3] = rows["train"][5]
    rows["train"][100] = rows["train"][99]
    for name, lines in rows.items():
        table = "".join(f"{text},{'ab'[i % 2]}\n" for i, text in enumerate(lines))
        (folder / f"{name}.csv").write_text("text,label\n" + table)
    return folder, rows


def fit(data: Path, out: Path, capsys, *options: str) -> tuple[dict, str]:
    arguments = ["fit", str(data), "--backbone", "toy:text-128", "--json", "--n-gates", "2"]
    arguments += ["--beta", "0.5", "--tolerance", "0.5", "--out", str(out), *options]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    return json.loads(shown.out), shown.err


@pytest.mark.slow
def test_fit_leaves_leaks_out_and_says_so(own, tmp_path, capsys):
    folder, rows = own
    record, said = fit(folder, tmp_path / "head", capsys, "--drop-leaks")
    leaks = record["leaks"]
    assert leaks["checked"] == {"train": 120, "validation": 40, "test": 40}
    assert leaks["test_in_train"] == {"exact": 1, "near": 0}
    assert leaks["within_train"] == {"exact": 1, "near": 0}
    assert leaks["dropped"] == {"train": 2, "validation": 0}
    assert (record["n_train"], record["n_validation"], record["n_test"]) == (118, 40, 40)
    assert "leaks" in record["seconds"]
    assert "note: duplicates: 1 of 40 test rows is in train too (1 exact)" in said
    assert "2 train rows were left out" in said and "--drop-leaks" not in said
    assert said.count(rows["train"][5][:50]) == 2  # both ends of the example
    for page in ("README.md", "report.html"):
        text = (tmp_path / "head" / page).read_text()
        assert "1 of 40 test rows is in train too (1 exact)" in text
        assert "2 train rows were left out" in text
        assert rows["train"][5] not in text  # a report may be published, its rows may not
    show_fit(FitRecord(**record))
    assert "duplicates: 1 of 40 test rows" in capsys.readouterr().out


@pytest.mark.slow
def test_fit_tells_of_leaks_and_keeps_them_unless_told_otherwise(own, tmp_path, capsys):
    folder, _ = own
    record, said = fit(folder, tmp_path / "kept", capsys)
    assert record["n_train"] == 120
    assert record["leaks"]["dropped"] == {"train": 0, "validation": 0}
    assert "--drop-leaks leaves such rows out" in said
    record, said = fit(folder, tmp_path / "off", capsys, "--no-leak-check")
    assert record["leaks"] is None and "duplicates" not in said
    assert "duplicates" not in (tmp_path / "off" / "report.html").read_text()
