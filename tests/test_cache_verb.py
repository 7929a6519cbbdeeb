"""The verb `cache`, and what other verbs leave in the cache directory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stores import make
from tiny_models import save_text_model

from extractors import FeatureStore

REPOSITORY = Path(__file__).parents[1]


def test_the_verb_cache_lists_verifies_compacts_and_removes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.cli import main

    monkeypatch.setenv("COLUMNS", "160")

    def cache(*arguments: str) -> tuple[int, str, str]:
        code = main(["cache", *arguments, "--cache-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    assert cache("ls") == (0, "", "note: there are no stores; `convex-heads extract` makes one\n")
    assert cache() == cache("ls")
    good, bad = (make(tmp_path / "stores" / name) for name in ("good", "bad"))
    (bad.path / "train-00007.arrow").unlink()
    code, out, _ = cache("ls", "--json")
    lines = json.loads(out)["stores"]
    assert (code, [line["name"] for line in lines]) == (0, ["bad", "good"])
    assert (lines[1]["rows"], lines[1]["shards"], lines[1]["dtype"]) == (66, 15, "float32")
    assert lines[1]["bytes_per_row"] == pytest.approx(good.n_bytes / 66, abs=0.1)
    code, out, err = cache("verify")
    assert code == 2
    assert re.search(r"bad .*train-00007\.arrow: missing", out)
    assert re.search(r"good .*whole", out)
    assert err.startswith("error: 1 of 2 stores need care, bad: train-00007.arrow: missing")
    assert len(err.splitlines()) == 1
    code, out, _ = cache("compact", "go")
    assert (code, FeatureStore.open(good.path).manifest.generation) == (0, 1)
    assert cache("compact", "bad")[0] == 2
    code, out, _ = cache("rm", "bad", str(good.path))
    assert code == 0
    assert re.fullmatch(r"removed bad \(0\.0 MB\)\nremoved good \(0\.0 MB\)\n", out)
    assert list((tmp_path / "stores").iterdir()) == []


def test_the_verb_cache_lists_and_removes_what_is_beside_the_stores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from extractors import load_extractor
    from extractors.blocks import CutBackbone
    from tasks.cli import main
    from tasks.cronos_am.activations import activation_folder, cached_rows

    def cache(*arguments: str) -> tuple[int, str, str]:
        code = main(["cache", *arguments, "--cache-dir", str(tmp_path), "--json"])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    make(tmp_path / "stores" / "reviews")
    texts, labels = ["a fine film", "a dull day"], np.array([1, 0])
    model = save_text_model("bert", tmp_path / "model")
    cut = CutBackbone(load_extractor(f"hf:{model}", device="cpu"), 1, texts)
    folders = [activation_folder(tmp_path, cut, ["a", "b"], {"n": n}) for n in (1, 2)]
    for folder in folders:
        rows = cached_rows(cut, texts, labels, folder)
    (folders[0].with_name(".writing-1-abc")).mkdir()
    lines = json.loads(cache("ls")[1])["stores"]
    assert [line["kind"] for line in lines] == ["store"] + 3 * ["activations"]
    assert "left by a crash" in lines[1]["problems"][0]
    width = rows.activations(0).shape[1]
    vectors = rows.length(0) + rows.length(1)
    for line in lines[2:]:
        assert (line["rows"], line["dim"], line["problems"]) == (vectors, width, [])
        assert line["bytes"] > 4 * vectors * width
    assert len(json.loads(cache("verify")[1])["stores"]) == 1
    assert cache("compact", "activations")[0] == 2
    assert cache("rm", f"activations/{folders[0].name[:9]}")[0] == 0
    assert [folder.exists() for folder in folders] == [False, True]
    before = rows.activations(1)
    assert cache("rm", "activations")[0] == 0
    np.testing.assert_array_equal(rows.activations(1), before)  # whoever has them open reads on
    assert not any((tmp_path / "activations").iterdir())
    code, _, errors = cache("rm", "activations")
    assert code == 2
    assert "there are no 'activations'" in errors


COMPILED = """
import sys
from tasks.cli import main
code = main(sys.argv[1:])
import jax
assert code == 2, code
print(jax.config.jax_compilation_cache_dir)
"""


def test_compiled_code_is_kept_in_the_cache_directory_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.compile_cache import keep_compiled_code

    name = "JAX_COMPILATION_CACHE_DIR"
    environment = {key: value for key, value in os.environ.items() if key != name}
    command = [sys.executable, "-c", COMPILED, "fit", "missing.csv", "--backbone", "toy:text-4"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "here")],
        capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False,
    )  # fmt: skip
    assert Path(done.stdout.strip()).parent == tmp_path / "here" / "compiled"
    monkeypatch.setenv(name, str(tmp_path / "own"))
    keep_compiled_code(tmp_path / "here")
    assert os.environ[name] == str(tmp_path / "own")


def test_the_verb_extract_stores_int8_and_says_what_that_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tasks.cli import main

    table = tmp_path / "reviews.csv"
    rows = [f"a {word} film number {i},{word}" for i in range(20) for word in ("fine", "dull")]
    table.write_text("text,label\n" + "\n".join(rows) + "\n")
    arguments = ["extract", str(table), "--backbone", "toy:text-32", "--cache-dir", str(tmp_path)]
    assert main([*arguments, "--store-dtype", "int8", "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record["store_dtype"] == "int8"
    assert 1e-3 < record["storage_error"]["mean"] <= record["storage_error"]["max"] < 2e-2
    assert "features are stored as int8: they differ from float32 by" in captured.err
    store = FeatureStore.open(record["store"])
    assert (store.manifest.dtype, store.verify()) == ("int8", [])
    assert main([*arguments, "--store-dtype", "int4"]) == 2
    assert "--store-dtype int4: must be" in capsys.readouterr().err
