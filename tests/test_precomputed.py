"""Vectors that somebody else computed: every file form, from the command line and from Python."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from extractors import BadRow, InputError, load_extractor
from extractors.toy import ToyImage
from tasks import ConvexHeadPipeline, load_task
from tasks.cli import main
from tasks.config import FitConfig
from tasks.console import QuietReporter
from tasks.fit import run_fit

QUICK = ("--n-gates", "4", "--beta", "0.1", "--tolerance", "0.01")


def vectors(n: int = 120, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, dim)).astype(np.float32)
    return X, np.where(X[:, 0] + X[:, 1] > 0, "pos", "neg")


def write(form: str, folder: Path) -> Path:
    """The same 120 rows in each of the forms."""
    import pyarrow as pa
    from pyarrow import feather, parquet

    X, y = vectors()
    path = folder / f"rows.{form.split()[0]}"
    lists = pa.array([row.tolist() for row in X], pa.list_(pa.float32()))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1)), X.shape[1])
    if form == "npy":
        np.save(path, X)
        np.save(folder / "rows.labels.npy", y)
    elif form == "npz":
        np.savez(path, X=X, y=y)
    elif form == "npz named":
        np.savez_compressed(path, features=X, label=y, more=np.arange(len(X)))
    elif form == "parquet":
        parquet.write_table(pa.table({"embedding": lists, "label": y}), path, row_group_size=50)
    elif form == "parquet fixed":
        parquet.write_table(pa.table({"features": fixed, "label": y}), path)
    elif form == "arrow":
        table = pa.table({"features": fixed, "label": y})
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=50)
    elif form == "arrow file":
        feather.write_feather(pa.table({"vector": lists, "class": y}), str(path), "uncompressed")
    else:
        lines = [
            json.dumps({"features": row.tolist(), "label": z}) for row, z in zip(X, y, strict=True)
        ]
        path.write_text("\n".join(lines))
    return path


FORMS = ["npy", "npz", "npz named", "parquet", "parquet fixed", "arrow", "arrow file", "jsonl"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    dataset = load_task(write(form, tmp_path))
    assert dataset.modality == "features"
    assert dataset.classes == ("neg", "pos")
    X, y = vectors()
    found = {
        name: (np.asarray(vector, np.float32), dataset.classes[label])
        for rows in dataset.splits.values()
        for name, vector, label in zip(rows.ids, rows.inputs, rows.labels, strict=True)
    }
    assert len(found) == len(X)
    for i, (vector, label) in enumerate(found[name] for name in sorted(found)):
        np.testing.assert_array_equal(vector, X[i])
        assert label == y[i]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_fit_and_predict_from_the_command_line(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, head = write(form, tmp_path), tmp_path / "head"
    backbone = ("--backbone", "precomputed") if form == "npy" else ()
    arguments = ("fit", str(path), *backbone, "--out", str(head), *QUICK, "--json")
    assert main([*arguments, "--quiet"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["backbone"], record["dim"]) == ("precomputed:6", 6)
    assert record["truncated_fraction"] is None and record["tokens"] is None
    assert record["test_accuracy"] > 0.8

    X, y = vectors()
    np.save(tmp_path / "new.npy", X)
    assert main(["predict", str(head), "--input", str(tmp_path / "new.npy"), "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["predictions"]
    assert np.mean([a["label"] == z for a, z in zip(answers, y, strict=True)]) > 0.8
    pipeline = ConvexHeadPipeline.from_pretrained(head)
    many: Any = pipeline(X)
    assert [a["label"] for a in many] == [a["label"] for a in answers]
    one: Any = pipeline(X[0].tolist())
    assert one == many[0]
    mixed: Any = pipeline([X[0], X[0, :2], None, "x"], on_bad_row="skip")
    assert mixed[0] == one and [answer["label"] for answer in mixed[1:]] == [None] * 3
    with pytest.raises(InputError, match=r"item 2.*2 features instead of 6"):
        pipeline([X[0], X[0, :2]])
    assert "vectors of features" in (head / "README.md").read_text()


def test_own_vectors_keep_their_small_columns_and_the_features_of_a_backbone_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A yes or no that decides, beside sums of money: in the head, the probe and the methods.
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    np.savez(tmp_path / "rows.npz", X=np.c_[rng.normal(0, 1e7, (300, 5)), y], y=y)
    data = str(tmp_path / "rows.npz")
    assert main(["fit", data, *QUICK, "--out", str(tmp_path / "head"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["test_accuracy"] == record["linear_probe_test_accuracy"] == 1
    asked = ["compare", data, "--methods", "linear,convex,svm", "--seeds", "1", *QUICK, "--json"]
    assert main([*asked, "--out", str(tmp_path / "compared")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["test_accuracy"] for row in rows] == [1, 1, 1]

    # A backbone with a column that weights decayed to.
    config = FitConfig(
        data="digits", out=tmp_path / "digits", cache_dir=tmp_path, n_gates=4, beta=0.1
    )
    run_fit(config, reporter=QuietReporter(), extractor=Decayed())
    clf = ConvexHeadPipeline.from_pretrained(tmp_path / "digits", extractor=Decayed())
    np.testing.assert_array_equal(clf.head.network.scaling.keep, [True] * 32 + [False])
    images = rng.integers(0, 256, (50, 16, 16, 3), np.uint8)
    X = clf.extractor.encode([clf.extractor.prepare(image) for image in images])
    # A copy in half precision, which has lost the last column, has the same labels.
    half = X.astype(np.float16).astype(np.float32)
    assert X[:, -1].any() and not half[:, -1].any()
    p, q = clf.head.predict_proba(X), clf.head.predict_proba(half)
    np.testing.assert_allclose(p, q, atol=5e-3)
    torch_head = clf.head.to_torch()
    assert (torch_head(torch.from_numpy(half)).argmax(1).numpy() == q.argmax(1)).all()


class Decayed(ToyImage):
    """A 33rd feature is the first, far below what half precision can hold."""

    def __init__(self) -> None:
        super().__init__(33)

    def encode(self, prepared: Any) -> np.ndarray:
        X = super().encode(prepared)
        return np.c_[X, 1e-9 * X[:, :1]]

    @cached_property
    def _projection(self) -> np.ndarray:
        return ToyImage()._projection


def test_split_files_are_respected(tmp_path: Path) -> None:
    X, y = vectors()
    for name, part in (("train", slice(0, 80)), ("test", slice(80, None))):
        np.save(tmp_path / f"{name}.npy", X[part])
        np.save(tmp_path / f"{name}.labels.npy", y[part])
    sizes = {name: len(rows) for name, rows in load_task(tmp_path).splits.items()}
    assert sizes["test"] == 40
    assert sizes["train"] + sizes["validation"] == 80


def test_text_beside_features_is_still_text(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "vec": [i, 1.0], "label": i % 2} for i in range(40)]
    path = tmp_path / "both.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_task(path).modality == "text"
    chosen = load_task(path, features_column="vec")
    assert chosen.modality == "features"
    assert chosen.splits["test"].inputs[0].shape == (2,)


def save_objects(path: Path) -> None:
    np.savez(path, X=np.ones((4, 2)), y=np.array(["a", None, "b", 1], dtype=object))


REFUSED = {
    "objects": (save_objects, "holds Python objects, which are not read"),
    "lengths": (lambda p: np.savez(p, X=np.ones((4, 2)), y=np.ones(3)), "arrays of one length"),
    "no labels": (lambda p: np.savez(p, X=np.ones((4, 2))), "no column 'label'"),
    "no arrays": (lambda p: p.write_bytes(b"text"), "cannot read"),
    "one axis": (lambda p: np.savez(p, features=np.ones(4), label=np.ones(4)), "has shape"),
    "matrices": (
        lambda p: np.savez(p, X=np.ones((4, 3, 2)), y=np.arange(4) % 2),
        r"row 1: the features have shape \(3, 2\), not that of a vector; rows .* used: 4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_one_sentence(case: str, tmp_path: Path) -> None:
    make, sentence = REFUSED[case]
    path = tmp_path / "rows.npz"
    make(path)
    with pytest.raises(InputError, match=sentence) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)


def test_a_row_that_is_not_finite_or_of_another_width_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    X, y = vectors()
    X[7, 2] = np.nan
    np.savez(tmp_path / "rows.npz", X=X, y=y)
    job = ["extract", str(tmp_path / "rows.npz"), "--cache-dir", str(tmp_path / "c"), "--quiet"]
    assert main(job) == 2
    assert "data row 8 cannot be encoded: a feature is missing" in capsys.readouterr().err
    assert main([*job, "--on-bad-row", "skip", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 119
    assert main([*job, "--backbone", "precomputed:5", "--on-bad-row", "fail"]) == 2
    assert "6 features instead of 5" in capsys.readouterr().err
    assert main([*job, "--backbone", "minilm"]) == 2
    assert "--backbone precomputed:6" in capsys.readouterr().err
    assert main([*job, "--pooling", "mean"]) == 2
    assert "--pooling: the backbone precomputed:6 has no such choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "item", ["text", [[1.0, 2.0]], None, [1.0, float("inf")], [1e300, 0.0], [1.0], np.ones((2, 1))]
)
def test_what_is_no_vector_is_a_bad_row(item: Any) -> None:
    with pytest.raises(BadRow):
        load_extractor("precomputed:2").prepare(item)
    good = load_extractor("precomputed:2").prepare(np.array([1, 2], np.int8))
    assert good.dtype == np.float32


def test_tensors_and_masks_that_are_no_plain_numbers_are_refused() -> None:
    ready = load_extractor("precomputed:3")
    for tensor in (torch.zeros(3, requires_grad=True), torch.zeros(3, dtype=torch.bfloat16)):
        with pytest.raises(InputError, match=r"detach\(\)\.float\(\)\.cpu\(\)\.numpy\(\)"):
            ready.prepare(tensor)
    assert ready.prepare(torch.ones(3)).tolist() == [1, 1, 1]
    with pytest.raises(BadRow, match="masked"):
        ready.prepare(np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False]))
    assert ready.prepare(np.ma.masked_array([1.0, 2.0, 3.0])).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("written", "width"),
    [("384", "384"), ("0384", "384"), ("0" * 5000 + "384", "384"), ("1000000", "1000000")]
    + [(bad, None) for bad in ("", "0", "000", "1000001", "0010000001", "9" * 5000, "-3", "²")],
)
def test_a_width_is_read_whatever_its_leading_zeros(written: str, width: str | None) -> None:
    from extractors.precomputed import canonical_width

    if width is None:
        with pytest.raises(InputError, match="precomputed:DIM"):
            canonical_width(written)
    else:
        assert canonical_width(written) == width
