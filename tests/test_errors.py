"""What an error calls an option: as the command line has it there, as a parameter in Python."""

from __future__ import annotations

import errno

import pytest

from extractors import InputError, MachineError, load_extractor
from extractors.errors import command_line
from extractors.options import FeatureOptions
from extractors.storage import plain_disk_errors
from tasks import compare, load_task
from tasks.cli import main


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("--train-rows 0: ask for one", "train_rows 0: ask for one"),
        ("use fewer rows (--train-rows)", "use fewer rows (train_rows)"),
        ("--n-gates 0, --beta=2", "n_gates 0, beta=2"),
        ("leave out --no-leak-check", "leave out leak_check=False"),
        ("run `convex-heads fit --out x` first", "run `convex-heads fit --out x` first"),
        ("a--b -- c a-b --", "a--b -- c a-b --"),
        ("/data/x --old-model/y: no file", "/data/x --old-model/y: no file"),
        ("/data/--old-model", "/data/--old-model"),
        ("x --old-model.csv: no --text-column.", "x --old-model.csv: no text_column."),
    ],
)
def test_options_are_parameters_in_python(written, read):
    for kind in (InputError, MachineError):
        error = kind(written)
        assert str(error) == read
        with command_line():
            assert str(error) == written
            assert str(kind(f"x: {error}")) == f"x: {written}"
        assert str(error) == read


def test_notes_name_options_as_errors_do(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,label\n" + "fine,a\n,b\n" * 10)
    (note,) = load_task(path).notes
    assert note.endswith("data row 2 (on_bad_row skip leaves them out)")
    with command_line():
        (note,) = load_task(path).notes
    assert note.endswith("data row 2 (--on-bad-row skip leaves them out)")


def test_a_full_disk_is_cured_by_the_option_that_chose_it(tmp_path):
    for option, named in (("--cache-dir", "cache_dir"), ("--output", "output")):
        with (
            pytest.raises(MachineError, match=rf"the disk is full: .* choose another {named}$"),
            plain_disk_errors(tmp_path, option),
        ):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_both_are_told_the_name_that_they_gave(capsys):
    with pytest.raises(InputError, match=r"^train_rows 0: ask for at least one row$"):
        load_task("digits", train_rows=0)
    with pytest.raises(InputError, match=r"^classes: there is no class 'x'"):
        load_task("digits", classes=["x"])
    with pytest.raises(InputError, match=r"^seeds 0: must be at least 1"):
        compare("digits", seeds=0)
    with pytest.raises(InputError, match=r"^pooling: the backbone toy:text-8 has no such choice"):
        load_extractor("toy:text-8", options=FeatureOptions(pooling="mean"))
    assert main(["fit", "digits", "--train-rows", "0"]) == 2
    assert "--train-rows 0: must be at least 1" in capsys.readouterr().err
    assert main(["extract", "digits", "--classes", "x"]) == 2
    assert "--classes: there is no class 'x'" in capsys.readouterr().err
