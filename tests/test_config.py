"""Options survive the way to TOML and back; records are strict JSON with the promised fields."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractors import InputError
from tasks import config
from tasks.config import ExtractConfig, FitConfig
from tasks.config_files import load_config, to_toml
from tasks.config_saved import PredictConfig
from tasks.records import FitRecord, to_json

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
positive = st.floats(1e-9, 0.999)


@given(
    st.builds(
        FitConfig,
        data=text,
        backbone=st.none() | text,
        out=st.none() | st.just(Path("a/b c")),
        train_rows=st.none() | st.integers(1, 2**40),
        seed=st.integers(0, 2**31),
        on_bad_row=st.sampled_from(["fail", "skip"]),
        n_gates=st.just("auto") | st.integers(1, 4096),
        gates=st.sampled_from(["aligned", "gaussian", "geometric", "pairs"]),
        beta=st.just("auto") | positive,
        tolerance=st.none() | positive,
        loss=st.sampled_from(["auto", "softmax", "logistic", "squared"]),
        precision=st.sampled_from(["float32", "tf32", "bfloat16"]),
    )
)
def test_options_survive_toml(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("toml") / "fit.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(FitConfig, path) == config


def test_repeated_options_survive_toml(tmp_path):
    config = PredictConfig(artefact="a", text=('one "two"', "three\n\x7f"), input=Path("x"))
    (tmp_path / "p.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(PredictConfig, tmp_path / "p.toml") == config


def test_flags_win_over_the_file(tmp_path):
    (tmp_path / "f.toml").write_text('data = "imdb"\nseed = 3\ntrain_rows = 10\n')
    config = load_config(ExtractConfig, tmp_path / "f.toml", {"seed": 5, "train_rows": None})
    assert (config.data, config.seed, config.train_rows) == ("imdb", 5, 10)


def test_a_file_with_faults_is_told_the_first_of_them(tmp_path):
    path = tmp_path / "f.toml"
    path.write_text('n_gates = "many"\nbeta = "x"\n')
    with pytest.raises(
        InputError, match=r"n_gates many: must be 'auto', 'grow' or a whole number$"
    ):
        load_config(FitConfig, path, {"data": "imdb"})
    path.write_text('[fit]\ndata = "imdb"\n')
    with pytest.raises(InputError, match=r"\[fit\] is a table; write options without one"):
        load_config(FitConfig, path)


def test_fit_json_has_the_promised_fields_in_their_order():
    promised = [
        "task",
        "backbone",
        "modality",
        "n_train",
        "n_validation",
        "n_test",
        "dim",
        "n_classes",
        "activation",
        "loss",
        "solver",
        "n_gates",
        "beta",
        "beta_max",
        "primal",
        "dual",
        "relative_gap",
        "cone_violation",
        "pattern_violation",
        "passes",
        "validation_accuracy",
        "test_accuracy",
        "test_accuracy_interval",
        "test_macro_f1",
        "test_nll",
        "test_ece",
        "linear_probe_test_accuracy",
        "truncated_fraction",
        "seconds",
        "peak_rss_mb",
        "artefact",
        "store",
        "seed",
        "versions",
    ]
    names = [field.name for field in dataclasses.fields(FitRecord)]
    assert names[: len(promised)] == promised


def test_records_are_strict_json():
    @dataclasses.dataclass(frozen=True)
    class Record:
        gap: float
        accuracy: object
        path: tuple
        place: Path

    record = Record(math.nan, np.float32(0.5), ({"beta": np.inf, "n": np.int64(3)},), Path("a"))
    line = to_json(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "gap": None,
        "accuracy": 0.5,
        "path": [{"beta": None, "n": 3}],
        "place": "a",
    }


def test_choices_of_the_command_line_are_those_of_the_library():
    # Written out in tasks/config.py, which must not load JAX.
    from convex_heads.gates import SAMPLERS
    from convex_heads.losses import LOSSES
    from convex_heads.penalties import PENALTIES
    from convex_heads.precision import Precision
    from convex_heads.programs import ACTIVATIONS

    assert set(get_args(config.Gates)) == set(SAMPLERS)
    assert set(get_args(config.Penalty)) == {"auto", *PENALTIES}
    assert set(get_args(config.Loss)) == {"auto", *LOSSES}
    assert get_args(config.Precision) == tuple(each.value for each in Precision)
    solvers = {name: ("auto", *kind.solvers) for name, kind in ACTIVATIONS.items()}
    assert solvers == config.SOLVERS
    assert set(get_args(config.Activation)) == set(solvers)
    assert set(get_args(config.Solver)) == {name for each in solvers.values() for name in each}
