"""What a store holds besides float32, what that costs, and who else can read it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stores import manifest

from extractors import FeatureStore, InputError, Rows, load_extractor
from extractors.codec import DTYPES, decode_features, encode_features
from extractors.extract import Extraction, extract
from extractors.shard import StoredRows
from extractors.toy import ToyText

OLD_STORE = Path(__file__).parent / "stores" / "demo-toy-text-4-a3c63b983b46"
BYTES = {"float32": 4, "float16": 2, "int8": 1}
DIM = 48


def some_rows(n: int) -> StoredRows:
    rng = np.random.default_rng(n)
    features = rng.standard_normal((n, DIM), dtype=np.float32) * rng.uniform(0.01, 90, (n, 1))
    features[0] = 0
    ids = [f"row/{i:04d}" for i in range(n)]
    tokens = rng.integers(1, 20, n).astype(np.int32)
    return StoredRows(ids, rng.integers(0, 2, n), features.astype(np.float32), tokens)


def part(rows: StoredRows, chosen: slice) -> StoredRows:
    assert rows.tokens is not None
    return StoredRows(
        rows.ids[chosen], rows.labels[chosen], rows.features[chosen], rows.tokens[chosen]
    )


@pytest.fixture(params=DTYPES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    """70 rows of one split in three shards."""
    rows = some_rows(70)
    with FeatureStore.writer(tmp_path / "store", manifest(request.param, dim=DIM)) as writer:
        for chosen in (slice(0, 30), slice(30, 31), slice(31, 70)):
            writer.append("train", part(rows, chosen))
    return FeatureStore.open(tmp_path / "store")


# ---- encoding ------------------------------------------------------------------------------------

FINITE = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 7)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@given(features=FINITE)
def test_int8_is_within_half_a_step_for_any_finite_row(features: np.ndarray) -> None:
    encoded = encode_features(features, "int8", list("abcdef"))
    assert encoded.values.dtype == np.int8
    assert encoded.scale is not None
    decoded = decode_features(encoded.values, encoded.scale)
    assert np.isfinite(decoded).all()
    largest = np.abs(features.astype(np.float64)).max(axis=1, keepdims=True)
    # Half a step, and the rounding of scales that are hardly numbers any more.
    allowed = 0.5001 * largest / 127 + 128 * np.finfo(np.float32).smallest_subnormal
    assert (np.abs(decoded.astype(np.float64) - features) <= allowed).all()


@given(features=FINITE)
def test_float16_is_the_nearest_half_or_a_refusal(features: np.ndarray) -> None:
    if np.abs(features).max() >= 65520:
        with pytest.raises(InputError, match=r"float16 ends at 65504: store them as int8"):
            encode_features(features, "float16", list("abcdef"))
        return
    encoded = encode_features(features, "float16", list("abcdef"))
    np.testing.assert_array_equal(encoded.values, features.astype(np.float16))
    assert np.isfinite(decode_features(encoded.values, None)).all()


def test_a_rows_bytes_do_not_depend_on_its_neighbours() -> None:
    features = some_rows(9).features
    whole = encode_features(features, "int8", list("abcdefghi"))
    alone = encode_features(features[4:5], "int8", ["e"])
    assert whole.scale is not None
    assert alone.scale is not None
    np.testing.assert_array_equal(whole.values[4:5], alone.values)
    np.testing.assert_array_equal(whole.scale[4:5], alone.scale)
    assert whole.error[4] == pytest.approx(alone.error[0])


def test_the_error_in_the_manifest_is_the_error_of_what_is_read(store: FeatureStore) -> None:
    rows = some_rows(70)
    read = store.read("train")
    assert read.features.dtype == np.float32
    lost = np.linalg.norm(read.features.astype(float) - rows.features, axis=1)
    relative = lost[1:] / np.linalg.norm(rows.features.astype(float), axis=1)[1:]
    reported = store.manifest.storage_error
    assert reported["max"] == pytest.approx(relative.max(), rel=1e-3)
    assert reported["mean"] == pytest.approx(relative.sum() / 70, rel=1e-3)
    limits = {"float32": (0, 0), "float16": (1e-5, 4e-4), "int8": (1e-3, 2e-2)}
    low, high = limits[store.manifest.dtype]
    assert low <= reported["mean"] <= reported["max"] <= high


def test_narrow_features_take_fewer_bytes_and_come_back_by_id(store: FeatureStore) -> None:
    assert store.verify() == []
    for block in store.blocks("train"):
        assert block.encoded.dtype == store.manifest.dtype
        assert block.encoded.nbytes == len(block) * DIM * BYTES[store.manifest.dtype]
        assert not block.encoded.flags.owndata  # mapped, whatever the dtype
    everything = store.read("train")
    wanted = ["row/0069", "row/0030", "row/0002", "row/0030", "row/0000"]
    some = store.read("train", wanted)
    assert some.ids == wanted
    np.testing.assert_array_equal(some.features, everything.features[[69, 30, 2, 30, 0]])
    np.testing.assert_array_equal(some.labels, everything.labels[[69, 30, 2, 30, 0]])
    assert some.tokens is not None
    assert everything.tokens is not None
    np.testing.assert_array_equal(some.tokens, everything.tokens[[69, 30, 2, 30, 0]])


def test_numbers_too_large_for_float16_name_their_row(tmp_path: Path) -> None:
    rows = some_rows(3)
    rows.features[1, 5] = 70_000
    with (
        FeatureStore.writer(tmp_path / "store", manifest("float16", dim=DIM)) as writer,
        pytest.raises(InputError, match=r"row 'row/0001' has features up to 7e\+04"),
    ):
        writer.append("train", rows)
    assert FeatureStore.open(tmp_path / "store").n_rows == 0


def test_every_dtype_has_its_own_store_and_resumes(tmp_path: Path) -> None:
    rows = Rows([f"{i}" for i in range(40)], [f"film {i}" for i in range(40)], np.arange(40) % 2)

    def run(dtype: str, n: int) -> Extraction:
        return extract(
            {"train": Rows(rows.ids[:n], rows.inputs[:n], rows.labels[:n])},
            ToyText(8),
            task="demo",
            classes=("no", "yes"),
            data_fingerprint={"sha256": "d"},
            cache_dir=tmp_path,
            shard_rows=16,
            dtype=dtype,  # type: ignore[arg-type]
        )

    done = {}
    for dtype in DTYPES:
        assert run(dtype, 20).rows == 20
        done[dtype] = run(dtype, 40)
        assert (done[dtype].resumed_rows, done[dtype].store.manifest.dtype) == (20, dtype)
        assert done[dtype].store.verify() == []
    assert len({extraction.store.path for extraction in done.values()}) == 3
    exact = done["float32"].store.read("train").features
    for dtype, tolerance in (("float16", 1e-3), ("int8", 1e-2)):
        close = done[dtype].store.read("train").features
        np.testing.assert_allclose(close, exact, atol=tolerance * np.abs(exact).max())
    with pytest.raises(InputError, match="float32, float16, int8, not as 'bfloat16'"):
        run("bfloat16", 20)
    with (
        pytest.raises(InputError, match="holds float32 features, int8 was asked for"),
        FeatureStore.writer(
            done["float32"].store.path, replace(done["float32"].store.manifest, dtype="int8")
        ),
    ):
        pass


# ---- other programs ------------------------------------------------------------------------------


def first_shard(store: FeatureStore) -> Path:
    return store.path / store.manifest.shards[0].file


def decoded(values: object, scale: object) -> np.ndarray:
    """What a reader of another library makes of the columns."""
    features = np.array([np.asarray(row) for row in values])  # type: ignore[attr-defined]
    return features.astype(np.float32) * (1 if scale is None else np.asarray(scale)[:, None])


def test_plain_pyarrow_reads_a_shard(store: FeatureStore) -> None:
    import pyarrow as pa

    table = pa.ipc.open_stream(first_shard(store).read_bytes()).read_all()
    kinds = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8()}
    names = ["id", "label", "split", "tokens", "features"]
    assert table.schema.names == names + ["scale"] * (store.manifest.dtype == "int8")
    assert table.schema.field("features").type == pa.list_(kinds[store.manifest.dtype], DIM)
    assert set(table["split"].to_pylist()) == {"train"}
    scale = table["scale"].to_numpy() if "scale" in table.schema.names else None
    np.testing.assert_array_equal(
        decoded(table["features"].to_pylist(), scale), store.read("train").features[:30]
    )


def test_datasets_reads_a_shard(store: FeatureStore) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_file(str(first_shard(store))).with_format("numpy")
    scale = rows["scale"][:] if "scale" in rows.column_names else None
    np.testing.assert_array_equal(
        decoded(rows["features"][:], scale), store.read("train").features[:30]
    )
    assert list(rows["id"][:2]) == ["row/0000", "row/0001"]


@pytest.mark.parametrize("store", ["float32", "int8"], indirect=True)
def test_polars_reads_a_shard(store: FeatureStore) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.read_ipc_stream(first_shard(store))
    scale = frame["scale"].to_numpy() if "scale" in frame.columns else None
    np.testing.assert_array_equal(
        decoded(frame["features"].to_list(), scale), store.read("train").features[:30]
    )
    assert frame["label"].to_list() == store.read("train").labels[:30].tolist()


@pytest.mark.parametrize("store", ["float32", "int8"], indirect=True)
def test_duckdb_reads_a_shard(store: FeatureStore) -> None:
    duckdb = pytest.importorskip("duckdb")
    import pyarrow as pa

    shard = pa.ipc.open_stream(pa.memory_map(str(first_shard(store)))).read_all()
    found = duckdb.from_arrow(shard).order("id").fetchall()
    columns = list(zip(*found, strict=True))
    # DuckDB hands out Python floats.
    scale = np.float32(columns[5]) if store.manifest.dtype == "int8" else None
    np.testing.assert_array_equal(decoded(columns[4], scale), store.read("train").features[:30])


# ---- stores of older versions --------------------------------------------------------------------


def old_data(n: int) -> dict[str, Rows]:
    """What the store in ``tests/stores`` was made from, by a version that wrote schema 1."""
    return {
        split: Rows(
            [f"{split}/{i:02d}" for i in range(rows)],
            [f"a fine film number {i}" for i in range(rows)],
            np.arange(rows) % 2,
        )
        for split, rows in (("train", n), ("test", 2))
    }


def test_a_store_of_schema_1_is_read_resumed_and_grown(tmp_path: Path) -> None:
    folder = tmp_path / "stores" / OLD_STORE.name
    shutil.copytree(OLD_STORE, folder)
    store = FeatureStore.open(folder)
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == 1
    assert (store.n_rows, store.splits, store.verify()) == (8, ("train", "test"), [])
    expected = load_extractor("toy:text-4").encode(old_data(6)["train"].inputs)
    np.testing.assert_allclose(store.read("train").features, expected, rtol=1e-6)
    rows = [int(row) for batch in store.batches("train", 4, seed=0) for row in batch.rows]
    assert sorted(rows) == list(range(6))

    def run(n: int) -> Extraction:
        return extract(
            old_data(n),
            load_extractor("toy:text-4"),
            task="demo",
            classes=("bad", "good"),
            data_fingerprint={"sha256": "schema-1"},
            cache_dir=tmp_path,
            shard_rows=4,
        )

    before = (folder / "manifest.json").read_bytes()
    assert (run(6).resumed_rows, run(6).rows) == (8, 8)
    assert (folder / "manifest.json").read_bytes() == before  # nothing was missing
    assert run(9).resumed_rows == 8
    grown = FeatureStore.open(folder)
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == 3
    assert (grown.n_rows, grown.verify()) == (11, [])
    np.testing.assert_array_equal(grown.read("train").features[:6], store.read("train").features)
