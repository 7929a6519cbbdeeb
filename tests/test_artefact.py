"""Artefacts: whole or not at all, safe to load, clear about what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convex_heads.decode import Network
from convex_heads.scaling import Scaling
from extractors.errors import InputError
from tasks.artefact import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Head,
    check_destination,
    read_artefact,
    write_artefact,
)


def make_head() -> Head:
    rng = np.random.default_rng(0)
    scaling = Scaling(np.zeros(3, "f"), np.ones(3, "f"), np.array([True, True, False]))
    weights = rng.normal(size=(2, 4, 3)).astype("f")
    gates = rng.normal(size=(2, 4)).astype("f")
    network = Network(scaling, gates, weights, np.zeros(3, "f"), "softmax")
    return Head(network, ("a", "b", "c"), 1.5)


def write(folder: Path, head: Head | None = None, **facts) -> None:
    write_artefact(
        folder,
        head or make_head(),
        modality="text",
        backbone="toy:text-3",
        backbone_fingerprint={"adapter": "toy/1"},
        facts=facts,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "head", certificate={"relative_gap": 0.01})
    return tmp_path / "head"


def test_what_is_read_is_what_was_written(folder):
    found, head = read_artefact(folder), make_head()
    X = np.random.default_rng(1).normal(size=(9, 3)).astype("f")
    np.testing.assert_array_equal(found.head.predict_proba(X), head.predict_proba(X))
    assert found.head.classes == head.classes
    assert found.config["certificate"] == {"relative_gap": 0.01}


def test_a_head_without_gates_survives(tmp_path):
    head = make_head()
    network = head.network
    empty = Network(
        network.scaling, network.gates[:0], network.weights[:0], network.offset, "softmax"
    )
    write(tmp_path / "empty", Head(empty, head.classes))
    p = read_artefact(tmp_path / "empty").head.predict_proba(np.zeros((1, 3), "f"))
    np.testing.assert_allclose(p, 1 / 3, rtol=1e-6)


def test_an_older_artefact_is_replaced_and_other_folders_are_not_touched(folder, tmp_path):
    write(folder, marker="second")
    assert read_artefact(folder).config["marker"] == "second"
    assert sorted(os.listdir(tmp_path)) == ["head"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"precious")
    with pytest.raises(InputError, match="other things in it"):
        write(other)
    assert (other / "cat.png").read_bytes() == b"precious"
    with pytest.raises(InputError, match="is a file"):
        write(other / "cat.png")


def test_links_are_followed_and_other_files_in_an_artefact_stay(folder, tmp_path):
    (folder / "head.onnx").write_bytes(b"precious")
    for name in ("report.html", "samples.jsonl"):
        (folder / name).write_text("of the older head")
    (tmp_path / "link").symlink_to(folder)
    write(tmp_path / "link", marker="second")
    assert (tmp_path / "link").is_symlink()
    assert read_artefact(folder).config["marker"] == "second"
    assert (folder / "head.onnx").read_bytes() == b"precious"
    assert not (folder / "report.html").exists()
    assert not (folder / "samples.jsonl").exists()
    assert sorted(os.listdir(tmp_path)) == ["head", "link"]
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    with pytest.raises(InputError, match="a link to nothing"):
        write(tmp_path / "nowhere")


def test_the_folder_one_works_in_is_written_from_within(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("."))
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "report.html").write_text("of the older head")
    inode = tmp_path.stat().st_ino
    write(Path("."), marker="second")
    assert read_artefact(Path(".")).config["marker"] == "second"
    assert tmp_path.stat().st_ino == inode
    assert sorted(os.listdir()) == ["config.json", "model.safetensors", "notes.txt"]


_ON_A_VOLUME = """
import os, sys
from pathlib import Path
from tasks.artefact import check_destination, read_artefact, write_artefact
head = read_artefact(Path(sys.argv[1])).head
for turn in range(2):
    write_artefact(Path(sys.argv[2]), head, modality="text", backbone="toy:text-3",
                   backbone_fingerprint={}, facts={"turn": turn})
    assert read_artefact(Path(sys.argv[2])).config["turn"] == turn
assert sorted(os.listdir(sys.argv[2])) == ["config.json", "model.safetensors"]
"""


def test_a_mounted_volume_is_written_from_within(folder, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    script = f"mount -t tmpfs none {volume} && exec {sys.executable} -c '{_ON_A_VOLUME}' "
    how = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    try:
        tried = subprocess.run([*how, f"mount -t tmpfs none {volume}"], capture_output=True)
    except OSError:
        pytest.skip("there is no unshare(1) to mount a volume with")
    if tried.returncode:
        pytest.skip("this user may not mount a volume")
    done = subprocess.run(
        [*how, f"{script} {folder} {volume}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_failure_on_the_way_leaves_the_older_artefact(folder, tmp_path):
    def fail(_: Path) -> None:
        raise RuntimeError("the report could not be written")

    with pytest.raises(RuntimeError):
        write_artefact(
            folder,
            make_head(),
            modality="text",
            backbone="toy:text-3",
            backbone_fingerprint={},
            facts={"marker": "half"},
            write_more=fail,
        )
    assert "marker" not in read_artefact(folder).config
    assert sorted(os.listdir(tmp_path)) == ["head"]


def _edit(**changes):
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG_NAME).read_text()) | changes
        (folder / CONFIG_NAME).write_text(json.dumps(config))

    return edit


def _reweigh(**changes):
    """Other arrays with a matching checksum: the shape checks must find them."""

    def edit(folder: Path) -> None:
        import hashlib

        arrays = load_file(folder / WEIGHTS_NAME) | changes
        save_file({k: v for k, v in arrays.items() if v is not None}, folder / WEIGHTS_NAME)
        digest = hashlib.sha256((folder / WEIGHTS_NAME).read_bytes()).hexdigest()
        _edit(weights_sha256=digest)(folder)

    return edit


def _flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS_NAME).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(content)


_HUGE = b'{"mean":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'

BROKEN = {
    "no config": (lambda f: (f / CONFIG_NAME).unlink(), "no config.json"),
    "no weights": (lambda f: (f / WEIGHTS_NAME).unlink(), "cannot read"),
    "not JSON": (lambda f: (f / CONFIG_NAME).write_text("{"), "cannot read"),
    "JSON beyond all depth": (
        lambda f: (f / CONFIG_NAME).write_text("[" * 100_000),
        "cannot read",
    ),
    "an activation that is a list": (_edit(activation=["relu"]), "'activation'"),
    "an unknown loss": (_edit(loss="hinge"), "'loss'"),
    "an unknown modality": (_edit(modality="sound"), "'modality'"),
    "a class twice": (_edit(classes=["a", "b", "a"]), "twice"),
    "a certificate that is a list": (_edit(certificate=[1]), "'certificate'"),
    "a header of all memory": (
        lambda f: (f / WEIGHTS_NAME).write_bytes(b"\xff" * 7 + b"\x7f" + b"{}" * 9),
        "no safetensors file",
    ),
    "arrays larger than the file": (
        lambda f: (f / WEIGHTS_NAME).write_bytes(
            (len(_HUGE)).to_bytes(8, "little") + _HUGE + bytes(16)
        ),
        "is not whole",
    ),
    "a truncated file": (
        lambda f: os.truncate(f / WEIGHTS_NAME, (f / WEIGHTS_NAME).stat().st_size - 4),
        "is not whole",
    ),
    "a scale of zero": (_reweigh(scale=np.zeros(3, "f")), "'scale'"),
    "half precision": (_reweigh(weights=np.zeros((2, 4, 3), "f2")), "'weights'"),
    "a list": (lambda f: (f / CONFIG_NAME).write_text("[]"), "schema version"),
    "another version": (_edit(schema_version=99), "schema version 99"),
    "a missing field": (_edit(classes=None), "'classes'"),
    "classes that are no names": (_edit(classes=[1, 2, 3]), "'classes'"),
    "temperature zero": (_edit(temperature=0), "'temperature'"),
    "too few classes": (_edit(classes=["a", "b"]), "outputs"),
    "an altered byte": (_flip_a_byte, "checksum"),
    "a wrong shape": (_reweigh(gates=np.zeros((5, 4), "f")), "'gates' has shape"),
    "NaN": (_reweigh(offset=np.full(3, np.nan, "f")), "'offset'"),
    "integers": (_reweigh(weights=np.zeros((2, 4, 3), "i4")), "'weights'"),
    "a missing array": (_reweigh(mean=None), "'mean' is missing"),
}


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.replace(" ", "-"))
def test_what_is_wrong_is_said_in_one_line(folder, case):
    damage, expected = BROKEN[case]
    damage(folder)
    with pytest.raises(InputError) as caught:
        read_artefact(folder)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no such file system")
def test_a_place_that_takes_no_folder_is_said_before_the_work() -> None:
    # Its permissions, and those of root, say that it can be written to.
    with pytest.raises(InputError, match=r"out /proc/x: /proc cannot be written to"):
        check_destination(Path("/proc/x"))
