"""Artefacts of every schema load; damaged ones are refused; a killed writer leaves a whole one."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fuzzing import damage, outcome

from extractors import load_extractor
from extractors.encode import encode_rows
from extractors.errors import InputError
from tasks.artefact import SCHEMA_VERSION, read_artefact
from tasks.cli import main
from tasks.pipeline import ConvexHeadPipeline

SAMPLES = Path(__file__).parent / "artefacts"
ALL = sorted(path.name for path in SAMPLES.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", ALL)
def test_a_frozen_sample_of_every_schema_loads_for_ever(name):
    net = SAMPLES / name / "net"  # where the sample brings its backbone along
    moved = f"hf:{net}" if net.is_dir() else None
    pipeline = ConvexHeadPipeline.from_pretrained(SAMPLES / name, backbone=moved, device="cpu")
    expected = json.loads((SAMPLES / name / "expected.json").read_text())
    found = pipeline(expected["texts"])
    assert [row["label"] for row in found] == expected["labels"]
    np.testing.assert_allclose([row["score"] for row in found], expected["scores"], atol=1e-5)
    features = np.array(expected["features"], np.float32)
    np.testing.assert_allclose(
        pipeline.head.predict_proba(features), expected["probabilities"], atol=1e-5
    )


def test_a_sample_holds_fine_tuned_weights_and_its_backbone_is_found_where_it_is_now(tmp_path):
    sample = SAMPLES / "schema-1-finetuned"
    texts = json.loads((sample / "expected.json").read_text())["texts"]
    with pytest.raises(InputError, match=r"no folder /backbones/net; .* backbone"):
        ConvexHeadPipeline.from_pretrained(sample)(texts)
    clf = ConvexHeadPipeline.from_pretrained(sample, backbone=f"hf:{sample / 'net'}", device="cpu")
    assert clf.changes
    tuned = clf(texts, return_features=True)
    plain = encode_rows(load_extractor(clf.backbone, device="cpu"), texts, texts).features
    assert np.abs(plain - [row["features"] for row in tuned]).max() > 0.1
    clf.save_pretrained(tmp_path / "again")  # which names the folder of now
    assert ConvexHeadPipeline.from_pretrained(tmp_path / "again", device="cpu")(texts) == clf(texts)
    other = tmp_path / "net"
    shutil.copytree(sample / "net", other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"layer_norm_eps": 1e-3}))
    with pytest.raises(InputError, match="content_sha256 differ"):
        ConvexHeadPipeline.from_pretrained(sample, backbone=f"hf:{other}")(texts)


def test_predict_takes_the_folder_of_a_backbone_that_has_moved(capsys):
    sample = SAMPLES / "schema-1-finetuned"
    expected = json.loads((sample / "expected.json").read_text())
    ask = ["predict", str(sample), "--text", expected["texts"][1], "--device", "cpu", "--quiet"]
    assert main(ask) == 2
    assert "--backbone" in capsys.readouterr().err
    assert main([*ask, "--backbone", f"hf:{sample / 'net'}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["predictions"][0]
    assert found["label"] == expected["labels"][1]


def test_there_is_a_sample_of_this_schema():
    versions = {
        json.loads((SAMPLES / name / "config.json").read_text())["schema_version"] for name in ALL
    }
    assert versions == set(range(1, SCHEMA_VERSION + 1))


def test_damaged_artefacts_are_refused_or_harmless(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[tuple[str, str], int] = {}
    for seed in range(300):
        source = SAMPLES / ALL[seed % len(ALL)]
        kind = damage(source, tmp_path / "head", seed)
        result = outcome(tmp_path / "head")
        found[kind, result] = found.get((kind, result), 0) + 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100_000  # kilobytes
    kinds = {kind for kind, _ in found}
    assert len(kinds) == 4
    for kind in kinds:  # all kinds of damage are really done
        assert found[kind, "refused"] > 10, found


_WRITER = """
import sys
from pathlib import Path
from tasks.artefact import read_artefact, write_artefact
found = read_artefact(Path(sys.argv[1]))
for i in range(100_000):
    write_artefact(
        Path(sys.argv[2]), found.head, modality="text", backbone="toy:text-8",
        backbone_fingerprint={}, facts={"turn": i},
        write_more=lambda f: (f / "README.md").write_text("x" * i),
    )
    print(i, flush=True)
"""


def test_a_writer_killed_at_any_moment_leaves_a_whole_artefact(tmp_path):
    place = tmp_path / "head"
    turns = set()
    for writes, wait in ((1, 0.0), (3, 0.003), (7, 0.011)):
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(SAMPLES / ALL[0]), str(place)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SAMPLES.parent.parent)},
        )
        assert writer.stdout is not None
        for _ in range(writes):
            writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        config = read_artefact(place).config
        assert len((place / "README.md").read_text()) == config["turn"]
        turns.add(config["turn"])
    assert len(turns) > 1
