"""The command line as a person and a script meet it: exit codes, streams, one-line errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from tasks.cli import _own_warnings_in_a_line, explain, main

VERBS = (
    *("demo", "tasks", "extract", "fit", "finetune", "compare", "predict", "evaluate", "refit"),
    *("export", "serve", "info", "cache", "doctor"),
)
HEAVY = ("torch", "jax", "sklearn", "scipy", "transformers", "datasets", "pyarrow", "matplotlib")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tasks.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


# ---- misuse ----


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("fit x --seed x", "--seed x: must be a whole number"),
        ("fit x --train-rows 1.5", "--train-rows 1.5: must be a whole number"),
        ("predict x --device gpu", "--device gpu: must be cpu, cuda, cuda:N"),
        ("cache list", "cache list: must be ls, verify, compact or rm"),
    ],
)
def test_a_value_is_refused_with_what_was_typed(arguments, said, capsys):
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_device_that_is_not_there_is_said_before_the_data_are_read(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["fit", "no-such-task", "--device", "cuda:1"]) == 1
    assert "--device cuda:1: no CUDA device here" in capsys.readouterr().err


# ---- help ----


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_screen_and_shows_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: convex-heads {verb}" in text
    assert len(text.splitlines()) <= 44
    for option in ("--json", "--seed", "--config", "--debug", "--quiet", "--cache-dir"):
        assert option in text


@pytest.mark.parametrize("verb", ["extract", "fit", "compare", "finetune"])
def test_help_leaves_no_option_out_when_it_is_asked_for_all(verb, capsys):
    from typer.main import get_command

    from tasks.verbs import app

    assert main([verb, "--help-all"]) == 0
    text = capsys.readouterr().out
    assert main([verb, "--help"]) == 0
    short = capsys.readouterr().out
    options = {name for each in get_command(app).commands[verb].params for name in each.opts}
    options = {name for name in options if name.startswith("--")}
    assert options == {name for name in options if f"{name} " in text or f"{name}\n" in text}
    assert len(options) > 30 and "--trust-remote-code" not in short


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_first_help_lists_the_verbs_in_full(arguments, capsys):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    commands = text.partition("Commands:")[2]
    assert "..." not in commands  # no sentence is cut off
    assert [line.split()[0] for line in commands.strip().splitlines()] == list(VERBS)


ALL_HELP = """
import contextlib, io, json
from tasks.cli import main
widths = {}
for verb in ("", "fit --help-all", "finetune --help-all", "compare", "predict", "cache"):
    with contextlib.redirect_stdout(io.StringIO()) as text:
        main([*verb.split(), "--help"])
    widths[verb] = max(map(len, text.getvalue().splitlines()))
print(json.dumps(widths))
"""


@pytest.mark.parametrize("columns", [40, 80])
def test_help_fits_the_terminal(columns):
    environment = {**os.environ, "COLUMNS": str(columns)}  # read when the verbs are made
    command = [sys.executable, "-c", ALL_HELP]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    widths = json.loads(done.stdout)
    assert len(widths) == 6
    assert all(columns / 2 < width <= columns for width in widths.values()), widths


def test_there_is_a_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"convex-heads {version('convex-heads')}\n"


def test_own_warnings_are_a_line_and_those_of_others_stay(capsys):
    from convex_heads import checkpoint

    with (
        warnings.catch_warnings(record=True, action="always") as heard,
        _own_warnings_in_a_line(),
    ):
        warnings.warn_explicit("no checkpoints from here on", UserWarning, checkpoint.__file__, 1)
        warnings.warn_explicit("something else", UserWarning, pytest.__file__, 1)
    assert capsys.readouterr().err == "warning: no checkpoints from here on\n"
    assert [str(each.message) for each in heard or ()] == ["something else"]


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tasks.cli import main; main(['fit', '--help']); "
        f"print('HEAVY', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fi", ["fit", "finetune"]),
        ("fit --be", ["--beta"]),
        ("fit digits --solver ", ["auto", "subspace", "fista", "descent", "admm"]),
        ("fit digits --n-gates ", ["auto", "grow"]),
    ],
)
def test_shells_complete_verbs_options_and_choices(words, expected, capsys, monkeypatch):
    line = f"convex-heads {words}"
    monkeypatch.setenv("_CONVEX_HEADS_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.split() == expected


# ---- refusals ----

REFUSED = {
    "no such verb": (["fitt"], "Did you mean 'fit'"),
    "no such option": (["fit", "digits", "--bata", "1"], "--beta"),
    "no data": (["fit"], "say which data"),
    "a word for a number": (["tasks", "--seed", "x"], "--seed"),
    "no gates": (["fit", "digits", "--n-gates", "0"], "--n-gates 0: must be at least 1"),
    "negative beta": (["fit", "digits", "--beta", "-1"], "--beta -1: must be above 0"),
    "no config": (["extract", "digits", "--config", "no.toml"], "cannot read --config no.toml"),
    "no artefact": (["predict"], "say which artefact"),
    "a file for a folder": (["info", __file__], "is a file: name the folder of a store or"),
    "no path": (["info"], "say which store or artefact"),
    "no such action": (["cache", "purge"], "cache purge: must be ls, verify, compact or rm"),
    "no store to remove": (["cache", "rm"], "say which stores to rm"),
    "no such store": (["cache", "verify", "no-such"], "there is no store 'no-such'"),
    "nothing there": (["info", "no/such/folder"], "no/such/folder does not exist"),
    "no data root": (["tasks", "--data-root", "no/such"], "--data-root no/such is not a folder"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_misuse_is_one_line_on_stderr_and_exit_code_2(case, capsys):
    arguments, expected = REFUSED[case]
    assert main(arguments) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("error: ")
    assert streams.err.count("\n") == 1
    assert expected in streams.err


def test_debug_shows_where(capsys):
    from extractors.errors import InputError

    with pytest.raises(InputError):
        main(["info", "no/such/folder", "--debug"])


def test_a_folder_that_is_neither_store_nor_artefact(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert "neither a store" in capsys.readouterr().err


# ---- failures of the machine ----


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line_and_exit_code_1():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tasks.cli", "tasks"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 1
    assert done.stderr == "error: no space left on the disk of the output\n"


def test_output_that_nobody_reads_ends_it_without_a_word():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "tasks.cli", "tasks"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_memory_that_is_not_there_is_told_with_what_takes_less():
    import jax.numpy as jnp

    for ask in (lambda: np.empty(1 << 50), lambda: jnp.zeros(1 << 46).block_until_ready()):
        with pytest.raises(Exception, match=r"(?i)unable to allocate|out of memory") as caught:
            ask()
        assert explain(caught.value) == (
            1,
            "out of memory; use fewer rows (--train-rows) or fewer gates (--n-gates)",
        )


# ---- verbs that need no head ----


def test_tasks_lists_what_is_at_hand(capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("CONVEX_HEADS_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(["tasks", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    listed = {task["name"]: task for task in json.loads(out)["tasks"]}
    assert listed["wordnet6"]["at_hand"] is True
    assert listed["imdb"]["at_hand"] is False
    assert listed["imdb"]["source"] == "hub:stanfordnlp/imdb"
    assert main(["tasks"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in listed)


def test_a_config_file_gives_the_options(capsys, tmp_path):
    (tmp_path / "t.toml").write_text('data_root = "no/such"\n')
    assert main(["tasks", "--config", str(tmp_path / "t.toml")]) == 2
    assert "no/such is not a folder" in capsys.readouterr().err


def test_doctor_names_what_is_wrong_and_the_cure(tmp_path):
    done = run("doctor", "--json", CONVEX_HEADS_DATA=str(tmp_path / "gone"), OMP_NUM_THREADS="64")
    assert done.returncode == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["data"]["status"] == "broken"
    assert "gone is not a folder" in checks["data"]["found"]
    assert checks["threads"]["status"] == "warning"
    assert "unset OMP_NUM_THREADS" in checks["threads"]["advice"]
    assert checks["jax devices"]["status"] == "ok"
    assert checks["hub"]["status"] == "warning"
    for check in checks.values():
        assert bool(check["advice"]) == (check["status"] != "ok")
    assert done.stderr == ""


@pytest.mark.parametrize("found", ["declared", "compiled"])
def test_doctor_tells_a_torchvision_that_works_from_one_that_is_cured(found, monkeypatch):
    from extractors import torchvision_compat
    from tasks.doctor import _torchvision

    torchvision_compat.ensure_torchvision_imports()
    monkeypatch.setattr(torchvision_compat, "ensure_torchvision_imports", lambda: found)
    check = _torchvision()
    assert check.status == "ok"
    assert ("need a matching build" in check.found) == (found == "declared")


def test_doctor_is_content_here(capsys, cache_dir, monkeypatch):
    monkeypatch.delenv("CONVEX_HEADS_DATA", raising=False)
    assert main(["doctor"]) == 0
    streams = capsys.readouterr()
    assert "at hand: wordnet6, digits" in streams.out
    assert str(cache_dir) in streams.out
    assert streams.err == ""
