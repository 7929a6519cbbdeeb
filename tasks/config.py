"""Options of the verbs that begin with rows and a backbone, as frozen dataclasses.

Nothing here knows how an option is carried out. Those of the other verbs are in
`tasks.config_saved`; `tasks.config_files` reads and writes them as TOML.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from extractors.errors import InputError
from extractors.options import (
    Autocast,
    FeatureOptions,
    LongText,
    Normalize,
    Pairs,
    Pooling,
    Projection,
    Quantize,
    parse_layers,
)
from tasks.config_base import CommonConfig, OnBadRow, above_zero, at_least, check_gap, number

Activation = Literal["gated_relu", "relu"]
Penalty = Literal["auto", "group", "ridge"]
Solver = Literal["auto", "subspace", "kernel", "fista", "descent", "admm"]
SOLVERS = {
    "gated_relu": ("auto", "subspace", "kernel", "fista"),
    "relu": ("auto", "descent", "admm"),
}
Loss = Literal["auto", "softmax", "logistic", "squared"]
ClassWeight = Literal["none", "balanced"]
Selection = Literal["best", "one-se"]
Calibration = Literal["none", "temperature"]
Gates = Literal["aligned", "gaussian", "geometric", "pairs"]
Engine = Literal["local", "ray"]
Optimizer = Literal["adamw", "schedule-free", "prodigy"]
Precision = Literal["float32", "tf32", "bfloat16"]
StoreDtype = Literal["float32", "float16", "int8"]

_BETA = " (a fraction of beta_max), or auto"


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(CommonConfig):
    """Options of `extract`: which rows, which backbone, where to.

    data: task name, path, or `hub:owner/name[:config]`. backbone: `source:id[@revision]`; None is
    the default for the data's modality. data_root: None means CONVEX_HEADS_DATA. The columns: None
    means find it. classes: only rows of these, see `tasks.data.classes`; none: all. train_rows,
    test_rows: None means all. layer to trust_remote_code: which features, see
    `extractors.options.FeatureOptions`; layer is a number, or several with commas. store_dtype: of
    the features on disk; what float16 and int8 lose is reported; None is float32, and float16 for
    imagenet-1k. device: as torch names it; None means the best there is. engine: "ray" encodes in
    so many workers (default 2) of a Ray started here, or of the one whose address is in
    RAY_ADDRESS.

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
    classes: tuple[str, ...] = ()
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
    pairs: Pairs = "text"
    autocast: Autocast = "none"
    quantize: Quantize = "none"
    trust_remote_code: str | None = None
    store_dtype: StoreDtype | None = None
    device: str | None = None
    engine: Engine = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--workers", self.workers, 1)
        if self.workers is not None and self.engine == "local":
            raise InputError("--workers is for --engine ray")
        at_least("--train-rows", self.train_rows, 1)
        at_least("--test-rows", self.test_rows, 1)
        self.feature_options()

    @property
    def stored_as(self) -> StoreDtype:
        """The dtype of the features on disk: the one chosen, or that of the task."""
        from tasks.data.registry import TASKS

        of_task = TASKS[self.data].store_dtype if self.data in TASKS else "float32"
        return self.store_dtype or of_task

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
            pairs=self.pairs,
            autocast=self.autocast,
            quantize=self.quantize,
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True, kw_only=True)
class FitConfig(ExtractConfig):
    """Options of `fit`: those of `extract`, and the head.

    out: where the artefact goes; None is a folder under the cache directory. beta: a fraction of
    beta_max, or "auto" (chosen on validation). loss: "auto" is logistic for two classes, else
    softmax; "logistic" with more is one-vs-rest. selection: how "auto" chooses: the lowest
    validation loss, or the largest beta within one standard error of it. penalty: "ridge" uses all
    gates and gains from many, "group" switches gates off, "auto" chooses as ConvexHeadClassifier
    does; beta_max is the group penalty's for both, and under "ridge" beta may be above it.
    tolerance: relative gap to stop at; max_seconds: time limit of the solver; None leaves both to
    its defaults.
    precision: of the products that a solve of a gated head begins with; the gap is always computed
    in float32, and a gap above the tolerance is closed in float32.
    leak_check: look for duplicates between the splits and within train; drop_leaks: leave them out
    of train and validation. embed_samples: put 20 test rows that the head gets wrong into the
    artefact, as samples.jsonl; otherwise it holds no row. comparison: a folder of `compare`, whose
    table goes into the model card. devices: of JAX, that the rows go over;
    None is one. coordinator, processes, process: this is one of several processes that fit together
    (address of process 0, how many, which one); they use all of their devices. checkpoint_minutes:
    the solver's state is kept so often, and a fit that was interrupted goes on from there. dry_run:
    predict the cost and fit nothing; machine: of a described machine, such as 1xH200.

    >>> FitConfig(data="imdb", n_gates=64).beta
    'auto'
    >>> FitConfig(data="imdb", beta=-1.0)
    Traceback (most recent call last):
    extractors.errors.InputError: beta -1: must be above 0 (a fraction of beta_max), or auto
    """

    several_labels: ClassVar[bool] = False
    out: Path | None = None
    activation: Activation = "gated_relu"
    loss: Loss = "auto"
    n_gates: Literal["auto", "grow"] | int = "auto"
    gates: Gates = "aligned"
    beta: Literal["auto"] | float = "auto"
    selection: Selection = "best"
    penalty: Penalty = "auto"
    solver: Solver = "auto"
    tolerance: float | None = None
    precision: Precision = "float32"
    max_seconds: float | None = None
    class_weight: ClassWeight = "none"
    calibrate: Calibration = "temperature"
    leak_check: bool = True
    drop_leaks: bool = False
    embed_samples: bool = False
    comparison: Path | None = None
    devices: Literal["all"] | int | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    checkpoint_minutes: float = 5.0
    dry_run: bool = False
    machine: str | None = None

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
        if self.activation == "relu" and self.penalty == "ridge":
            raise InputError(f"--penalty {self.penalty}: ReLU heads have the group penalty")
        if self.solver == "kernel" and (self.penalty, self.precision) != ("ridge", "float32"):
            raise InputError("--solver kernel is for --penalty ridge and --precision float32")
        if self.activation == "relu" and self.precision != "float32":
            raise InputError(f"--precision {self.precision}: ReLU heads are solved in float32")
        if self.activation == "relu" and self.n_gates == "grow":
            raise InputError("--n-gates grow: ReLU heads find their patterns by themselves")
        if not isinstance(self.n_gates, str):
            at_least("--n-gates", self.n_gates, 1, " (gates the head may choose from), or auto")
        if self.n_gates == "grow" and self.gates == "pairs":
            raise InputError(
                "--n-gates grow: grown gates are not drawn as pairs; choose other --gates"
            )
        if self.beta != "auto":
            above_zero("--beta", self.beta, _BETA)
            if self.beta > 1 and self.penalty != "ridge":
                raise InputError(
                    f"--beta {number(self.beta)}: must be at most 1{_BETA}; more is for "
                    "--penalty ridge"
                )
        check_gap(self.tolerance)
        above_zero("--max-seconds", self.max_seconds)
        above_zero("--checkpoint-minutes", self.checkpoint_minutes)
        if self.machine is not None and not self.dry_run:
            raise InputError("--as is for --dry-run")

    def _check_cluster(self) -> None:
        if not isinstance(self.devices, str):
            at_least("--devices", self.devices, 1, " (devices that rows go over), or all")
        at_least("--processes", self.processes, 1)
        at_least("--process", self.process, 0)
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
    resume: go on from the checkpoint beside `out`. penalty: "group" unless asked otherwise, since a
    ridge head of many gates fits all of few rows and leaves the blocks little to learn.

    >>> FinetuneConfig(data="sst2", unfreeze=2).rounds
    5
    """

    penalty: Penalty = "group"
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
        at_least("--unfreeze", self.unfreeze, 1, " (blocks from the top)")
        at_least("--rounds", self.rounds, 1)
        at_least("--batch-size", self.batch_size, 1)
        at_least("--accumulate", self.accumulate, 1)
        at_least("--lora", self.lora, 1, " (a rank)")
        above_zero("--learning-rate", self.learning_rate)
        above_zero("--epochs", self.epochs)
        above_zero("--budget-seconds", self.budget_seconds)
        if self.n_gates == "grow":
            raise InputError("--n-gates grow: gates stay as they are here; leave it out")
        if self.precision != "float32":
            raise InputError(
                f"--precision {self.precision}: heads are solved in float32 here; leave it out"
            )
        if self.accumulate > self.batch_size:
            raise InputError(f"--accumulate {self.accumulate}: a step has {self.batch_size} rows")
        if self.optimizer == "prodigy" and self.layer_decay != 1:
            raise InputError("--layer-decay: prodigy finds one rate for all blocks; leave it out")
        if not 0 < self.layer_decay <= 1:
            raise InputError(
                f"--layer-decay {number(self.layer_decay)}: must be above 0 and at most 1"
            )


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
        at_least("--seeds", self.seeds, 1)
        above_zero("--budget-seconds", self.budget_seconds)
        for shots in self.shots:
            at_least("--shots", shots, 1, " (training rows of every class)")
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
