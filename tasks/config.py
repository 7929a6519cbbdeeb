"""Options of the command line's verbs as frozen dataclasses, and their form as TOML files.

One class per verb that has options worth keeping. A TOML file has one flat key per field; flags on
the command line win over the file. Nothing here knows how an option is carried out.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from extractors.errors import InputError
from extractors.options import (
    Autocast,
    FeatureOptions,
    LongText,
    Normalize,
    Pooling,
    Projection,
    Quantize,
    parse_layers,
)

OnBadRow = Literal["fail", "skip"]
Activation = Literal["gated_relu", "relu"]
Penalty = Literal["group", "ridge"]
Solver = Literal["auto", "subspace", "fista", "descent", "admm"]
SOLVERS = {
    "gated_relu": ("auto", "subspace", "fista"),
    "relu": ("auto", "descent", "admm"),
}
Loss = Literal["auto", "softmax", "logistic", "squared"]
ClassWeight = Literal["none", "balanced"]
Selection = Literal["best", "one-se"]
Calibration = Literal["none", "temperature"]
Gates = Literal["aligned", "gaussian", "geometric", "pairs"]
Engine = Literal["local", "ray"]
OutputFormat = Literal["table", "jsonl", "csv", "parquet"]
ExportFormat = Literal["onnx", "torch"]
Optimizer = Literal["adamw", "schedule-free", "prodigy"]
StoreDtype = Literal["float32", "float16", "int8"]
CacheAction = Literal["ls", "verify", "compact", "rm"]

# What to say when a field without a default is not given.
_MISSING = {
    "data": "say which data: a task's name (`convex-heads tasks` lists them), a file or a folder",
    "path": "say which store or artefact: a folder that `extract` or `fit` wrote",
    "action": "say what to do with the stores: ls, verify, compact or rm",
    "artefact": "say which artefact: the folder that `convex-heads fit` wrote",
    "out": "say where to write, with --out",
}


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Options of every verb. cache_dir: None means CONVEX_HEADS_CACHE, then the usual place."""

    cache_dir: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("--seed", self.seed, 0)


@dataclass(frozen=True, kw_only=True)
class TasksConfig(CommonConfig):
    """Options of `tasks` and `doctor`. data_root: None means CONVEX_HEADS_DATA."""

    data_root: Path | None = None


@dataclass(frozen=True, kw_only=True)
class InfoConfig(CommonConfig):
    """Options of `info`. path: a store or an artefact."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class CacheConfig(CommonConfig):
    """Options of `cache`. stores: names or folders; none means all for `ls` and `verify`."""

    action: CacheAction
    stores: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action in ("compact", "rm") and not self.stores:
            raise InputError(
                f"say which stores to {self.action}: `convex-heads cache ls` lists them"
            )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(CommonConfig):
    """Options of `demo`: the main job on wordnet6 with minilm; None as in FitConfig."""

    out: Path | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    device: str | None = None

    def fit_config(self) -> FitConfig:
        """The same job as options of `fit`."""
        return FitConfig(
            data="wordnet6",
            backbone="minilm",
            out=self.out,
            train_rows=self.train_rows,
            test_rows=self.test_rows,
            device=self.device,
            cache_dir=self.cache_dir,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True)
class PredictConfig(CommonConfig):
    """Options of `predict`: a saved head, and texts or a file or folder of new rows.

    output: a file; None is stdout. format: None follows the suffix of output, otherwise a table.
    """

    artefact: str
    text: tuple[str, ...] = ()
    input: Path | None = None
    output: Path | None = None
    format: OutputFormat | None = None
    text_column: str | None = None
    image_column: str | None = None
    features_column: str | None = None
    on_bad_row: OnBadRow = "fail"
    trust_remote_code: str | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(CommonConfig):
    """Options of `evaluate`: a saved head, and labelled rows.

    data, data_root and *_column: as in ExtractConfig. split: None takes test where there is one,
    otherwise all rows. by: a column of the table; metrics are given for each of its values.
    """

    artefact: str
    data: str
    split: Literal["train", "validation", "test"] | None = None
    by: str | None = None
    data_root: Path | None = None
    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    features_column: str | None = None
    on_bad_row: OnBadRow = "fail"
    trust_remote_code: str | None = None
    device: str | None = None


@dataclass(frozen=True, kw_only=True)
class RefitConfig(CommonConfig):
    """Options of `refit`: a saved head, labelled rows to add, and where the new head goes.

    Backbone, standardisation, gates and penalty are those of the head. The others are as in
    FitConfig.
    """

    artefact: str
    data: str
    out: Path
    data_root: Path | None = None
    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    features_column: str | None = None
    on_bad_row: OnBadRow = "fail"
    tolerance: float | None = None
    max_seconds: float | None = None
    trust_remote_code: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _above_zero("--tolerance", self.tolerance, _GAP)
        _above_zero("--max-seconds", self.max_seconds)


@dataclass(frozen=True, kw_only=True)
class ServeConfig(CommonConfig):
    """Options of `serve`: which head, where, and how much at once.

    host: loopback unless another is named. port: 0 takes a free one. max_batch: rows that are
    encoded together. max_queue: rows that may wait; beyond, requests are answered with 503.
    max_rows and max_body_mb: of one request. timeout_seconds: until a request is answered with 504.
    shutdown_seconds: that requests are given to end.
    """

    artefact: str
    host: str = "127.0.0.1"
    port: int = 8000
    max_batch: int = 64
    max_queue: int = 256
    max_rows: int = 256
    max_body_mb: float = 16.0
    timeout_seconds: float = 60.0
    shutdown_seconds: int = 30
    trust_remote_code: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("--port", self.port, 0)
        if self.port > 65535:
            raise InputError(f"--port {self.port}: must be at most 65535")
        for name in ("max_batch", "max_queue", "max_rows", "shutdown_seconds"):
            _at_least(f"--{name.replace('_', '-')}", getattr(self, name), 1)
        _above_zero("--max-body-mb", self.max_body_mb)
        _above_zero("--timeout-seconds", self.timeout_seconds)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(CommonConfig):
    """Options of `export`: which head, as what, and whether its backbone goes before it.

    out: the file to write. format: "onnx", or "torch" for a `torch.export` program.
    """

    artefact: str
    out: Path
    format: ExportFormat = "onnx"
    with_backbone: bool = False
    trust_remote_code: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(CommonConfig):
    """Options of `extract`: which rows, which backbone, where to.

    data: task name, path, or `hub:owner/name[:config]`. backbone: `source:id[@revision]`; None is
    the default for the data's modality. data_root: None means CONVEX_HEADS_DATA. *_column: None
    means find it. train_rows, test_rows: None means all. layer to trust_remote_code: which
    features, see `extractors.options.FeatureOptions`; layer is a number, or several with commas.
    store_dtype: of the features on disk; what float16 and int8 lose is reported. device: as torch
    names it; None means the best there is. engine: "ray" encodes in so many workers (default 2) of
    a Ray started here, or of the one whose address is in RAY_ADDRESS.

    >>> ExtractConfig(data="imdb", train_rows=5000).on_bad_row
    'fail'
    """

    several_labels: ClassVar[bool] = True  # whether rows may have them; not an option

    data: str
    backbone: str | None = None
    data_root: Path | None = None
    text_column: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    features_column: str | None = None
    train_rows: int | None = None
    test_rows: int | None = None
    on_bad_row: OnBadRow = "fail"
    layer: int | str | None = None
    pooling: Pooling | None = None
    projection: Projection | None = None
    prompt: str | None = None
    normalize: Normalize | None = None
    max_length: int | None = None
    long_text: LongText = "truncate"
    autocast: Autocast = "none"
    quantize: Quantize = "none"
    trust_remote_code: str | None = None
    store_dtype: StoreDtype = "float32"
    device: str | None = None
    engine: Engine = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("--workers", self.workers, 1)
        if self.workers is not None and self.engine == "local":
            raise InputError("--workers is for --engine ray")
        _at_least("--train-rows", self.train_rows, 1)
        _at_least("--test-rows", self.test_rows, 1)
        self.feature_options()

    def feature_options(self) -> FeatureOptions:
        """Which features, as an extractor takes it."""
        return FeatureOptions(
            layer=None if self.layer is None else parse_layers(self.layer),
            pooling=self.pooling,
            projection=self.projection,
            prompt=self.prompt,
            normalize=self.normalize,
            max_length=self.max_length,
            long_text=self.long_text,
            autocast=self.autocast,
            quantize=self.quantize,
            trust_remote_code=self.trust_remote_code,
        )


_GAP = " (a relative duality gap)"
_BETA = " (a fraction of beta_max), or auto"


@dataclass(frozen=True, kw_only=True)
class FitConfig(ExtractConfig):
    """Options of `fit`: those of `extract`, and the head.

    out: where the artefact goes; None is a folder under the cache directory. beta: a fraction of
    beta_max, or "auto" (chosen on validation). selection: how "auto" chooses: the lowest validation
    loss, or the largest beta within one standard error of it. penalty: "group" switches gates off,
    "ridge" uses them all; beta_max is the group penalty's for both. tolerance: relative duality gap
    to stop at; max_seconds: time limit of the solver; None leaves both to the solver's defaults.
    leak_check: look for duplicates between the splits and within train; drop_leaks: leave them out
    of train and validation. embed_samples: put 20 test rows that the head gets wrong into the
    artefact, as samples.jsonl; otherwise it holds no row. devices: of JAX, that the rows go over;
    None is one. coordinator, processes, process: this is one of several processes that fit together
    (address of process 0, how many, which one); they use all of their devices.

    >>> FitConfig(data="imdb", n_gates=64).beta
    'auto'
    >>> FitConfig(data="imdb", beta=-1.0)
    Traceback (most recent call last):
    extractors.errors.InputError: --beta -1.0: must be above 0 (a fraction of beta_max), or auto
    """

    several_labels: ClassVar[bool] = False
    out: Path | None = None
    activation: Activation = "gated_relu"
    loss: Loss = "auto"
    n_gates: Literal["auto", "grow"] | int = "auto"
    gates: Gates = "aligned"
    beta: Literal["auto"] | float = "auto"
    selection: Selection = "best"
    penalty: Penalty = "group"
    solver: Solver = "auto"
    tolerance: float | None = None
    max_seconds: float | None = None
    class_weight: ClassWeight = "none"
    calibrate: Calibration = "temperature"
    leak_check: bool = True
    drop_leaks: bool = False
    embed_samples: bool = False
    devices: Literal["all"] | int | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_cluster()
        if self.drop_leaks and not self.leak_check:
            raise InputError("--drop-leaks needs the leak check: leave out --no-leak-check")
        known = SOLVERS[self.activation]
        if self.solver not in known:
            raise InputError(
                f"--solver {self.solver}: {self.activation} heads have {', '.join(known)}"
            )
        if self.activation == "relu" and self.penalty != "group":
            raise InputError(f"--penalty {self.penalty}: ReLU heads have the group penalty")
        if self.activation == "relu" and self.n_gates == "grow":
            raise InputError("--n-gates grow: ReLU heads find their patterns by themselves")
        if not isinstance(self.n_gates, str):
            _at_least("--n-gates", self.n_gates, 1, " (gates the head may choose from), or auto")
        if self.n_gates == "grow" and self.gates == "pairs":
            raise InputError(
                "--n-gates grow: grown gates are not drawn as pairs; choose other --gates"
            )
        if self.beta != "auto":
            _above_zero("--beta", self.beta, _BETA)
            if self.beta > 1:
                raise InputError(f"--beta {self.beta}: must be at most 1{_BETA}")
        _above_zero("--tolerance", self.tolerance, _GAP)
        if self.tolerance is not None and self.tolerance >= 1:
            raise InputError(f"--tolerance {self.tolerance}: must be below 1{_GAP}")
        _above_zero("--max-seconds", self.max_seconds)

    def _check_cluster(self) -> None:
        if not isinstance(self.devices, str):
            _at_least("--devices", self.devices, 1, " (devices that rows go over), or all")
        _at_least("--processes", self.processes, 1)
        _at_least("--process", self.process, 0)
        given = [x is not None for x in (self.coordinator, self.processes, self.process)]
        if any(given) and not all(given):
            raise InputError(
                "--coordinator HOST:PORT, --processes N and --process I go together: process I of "
                "N, which all reach process 0 at that address"
            )
        if self.process is not None and self.processes and self.process >= self.processes:
            raise InputError(
                f"--process {self.process}: must be at most {self.processes - 1}, they are counted "
                "from 0"
            )


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(FitConfig):
    """Options of `finetune`: those of `fit`, and how the top blocks are trained.

    unfreeze: so many blocks from the top. rounds: at most so many, each a block half-step and a
    head half-step. optimizer: "schedule-free" and "prodigy" need the extra `finetune`, and so does
    lora, the rank of the change of every linear layer in a round. learning_rate: None finds it.
    epochs: of a block half-step. layer_decay: each block's rate is so many times that of the one
    above. accumulate: passes that a step is divided into. budget_seconds: of all rounds together.
    resume: go on from the checkpoint beside `out`.

    >>> FinetuneConfig(data="sst2", unfreeze=2).rounds
    5
    """

    unfreeze: int = 1
    rounds: int = 5
    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    epochs: float = 1.0
    batch_size: int = 32
    accumulate: int = 1
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    dropout: bool = False
    lora: int | None = None
    budget_seconds: float | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("--unfreeze", self.unfreeze, 1, " (blocks from the top)")
        _at_least("--rounds", self.rounds, 1)
        _at_least("--batch-size", self.batch_size, 1)
        _at_least("--accumulate", self.accumulate, 1)
        _at_least("--lora", self.lora, 1, " (a rank)")
        _above_zero("--learning-rate", self.learning_rate)
        _above_zero("--epochs", self.epochs)
        _above_zero("--budget-seconds", self.budget_seconds)
        if self.n_gates == "grow":
            raise InputError("--n-gates grow: gates stay as they are here; leave it out")
        if self.accumulate > self.batch_size:
            raise InputError(f"--accumulate {self.accumulate}: a step has {self.batch_size} rows")
        if self.optimizer == "prodigy" and self.layer_decay != 1:
            raise InputError("--layer-decay: prodigy finds one rate for all blocks; leave it out")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"--layer-decay {self.layer_decay}: must be above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(FitConfig):
    """Options of `compare`: those of `fit`, which are the convex head's, and the protocol.

    backbone: one, or several; several are compared one by one and side by side (concatenated).
    methods: none means those that fit the data. seeds: how many, from `seed` on. shots: few-shot
    comparisons with so many training rows of every class. curve: learning curves over train size.
    embed_samples: show texts or thumbnails of rows in the report, which otherwise names their ids.
    budget_seconds: for each seed of each method that trains the backbone. out: where records and
    report go; the same options go on with what is there.

    >>> CompareConfig(data="imdb").seeds
    5
    """

    several_labels: ClassVar[bool] = True
    backbone: str | tuple[str, ...] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    methods: tuple[str, ...] = ()
    seeds: int = 5
    shots: tuple[int, ...] = ()
    curve: bool = False
    embed_samples: bool = False
    budget_seconds: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("--seeds", self.seeds, 1)
        _above_zero("--budget-seconds", self.budget_seconds)
        for shots in self.shots:
            _at_least("--shots", shots, 1, " (training rows of every class)")
        if self.shots and self.curve:
            raise InputError("--shots and --curve are two comparisons: ask for one of them")
        if len(set(self.backbones)) < len(self.backbones):
            raise InputError("--backbone names the same backbone twice")
        from tasks.methods import check_methods

        check_methods(self.methods)

    @property
    def backbones(self) -> tuple[str | None, ...]:
        """One at least; None is the default for the data."""
        if isinstance(self.backbone, str) or self.backbone is None:
            return (self.backbone,)
        return self.backbone or (None,)


def _at_least(option: str, value: int | None, least: int, more: str = "") -> None:
    if value is not None and value < least:
        raise InputError(f"{option} {value}: must be at least {least}{more}")


def _above_zero(option: str, value: float | None, more: str = "") -> None:
    # `not >` rather than `<=`, so that NaN is refused too.
    if value is not None and not 0 < value < float("inf"):
        raise InputError(f"{option} {value}: must be above 0{more}")


Config = TypeVar("Config", bound=CommonConfig)


def load_config(
    kind: type[Config], path: Path | None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """Build a `kind` from a TOML file (or None) and from `overrides`, which win.

    An override of None means: not given. Values are validated; text such as "64" is converted
    where a number is wanted. Raises InputError for a file that cannot be read, an unknown key
    (with the closest known one), and a value of the wrong kind.

    >>> load_config(FitConfig, None, {"data": "digits", "n_gates": "64", "beta": None}).n_gates
    64
    """
    values = read_toml(path, kind) if path is not None else {}
    values |= {key: value for key, value in (overrides or {}).items() if value is not None}
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in values:
            raise InputError(_MISSING[field.name])
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from None
        option = "--" + str(first["loc"][0]).replace("_", "-")
        wanted = " or ".join(dict.fromkeys(_wanted(each) for each in error.errors()))
        raise InputError(f"{option} {first['input']}: {wanted}") from None


def _wanted(error: Any) -> str:
    """What pydantic would have accepted, in words that fit behind an option."""
    message = str(error["msg"]).removeprefix("Input should be ")
    return "must be " + message.split(", unable to")[0]


def read_toml(path: Path, kind: type[CommonConfig]) -> dict[str, Any]:
    """The keys and values of a flat TOML file, after checking that `kind` has such fields."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read --config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from error
    values = {key.replace("-", "_"): value for key, value in values.items()}
    known = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known are {', '.join(known)}"
            raise InputError(f"{path}: unknown option '{key}'{hint}")
    return values


def to_toml(config: CommonConfig) -> str:
    """The options as a TOML file that `load_config` reads back to an equal object.

    Options that are None are left out, since TOML has no such value.

    >>> print(to_toml(ExtractConfig(data="imdb")), end="")
    seed = 0
    data = "imdb"
    on_bad_row = "fail"
    long_text = "truncate"
    autocast = "none"
    quantize = "none"
    store_dtype = "float32"
    engine = "local"
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return "".join(
        f"{key} = {_toml(value)}\n" for key, value in values.items() if value is not None
    )


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        # A TOML basic string is a JSON string, except that DEL must be escaped too.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def as_command(verb: str, config: ExtractConfig) -> str:
    """The command line that these options come from; what has its default value is left out.

    >>> as_command("fit", FitConfig(data="my reviews.csv", backbone="minilm", n_gates=32))
    "convex-heads fit 'my reviews.csv' --backbone minilm --n-gates 32"
    """
    words = ["convex-heads", verb, config.data]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = field.name.replace("_", "-")
        if field.name == "data" or value == field.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif field.name == "backbone" and isinstance(value, tuple):
            for each in value:
                words += ["--backbone", each]
        elif isinstance(value, tuple):
            words += [f"--{name}", ",".join(map(str, value))]
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)
