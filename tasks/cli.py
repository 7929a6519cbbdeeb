"""The command line: parsing and printing only.

Results go to stdout, progress and notes to stderr. Exit codes: 0 done; 2 misuse or unusable input;
1 failure of the machine around us; 130 interrupted. Anything but 0 comes with one line on stderr.
Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer

from extractors.errors import InputError, MachineError
from tasks import options as o
from tasks.compile_cache import keep_compiled_code
from tasks.config import (
    CacheConfig,
    CompareConfig,
    Config,
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    ExtractConfig,
    FinetuneConfig,
    FitConfig,
    InfoConfig,
    PredictConfig,
    RefitConfig,
    ServeConfig,
    TasksConfig,
    load_config,
)

app = typer.Typer(
    help="Certified convex two-layer ReLU heads on frozen features.\n\n"
    "Start with: convex-heads demo",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _config(kind: type[Config], context: typer.Context) -> Config:
    """The options of a verb: its parameters have the names of the fields of `kind`.

    Built before anything heavy is imported, so that misuse is answered at once.
    """
    given = dict(context.params)
    path = given.pop("config", None)
    for flag in ("json", "quiet", "debug"):
        given.pop(flag, None)
    for repeated in ("text", "stores"):
        if repeated in given:
            given[repeated] = given[repeated] or None
    for listed in ("methods", "shots"):
        if listed in given:  # with commas, or the option again, or both
            parts = [part.strip() for text in given[listed] or () for part in text.split(",")]
            given[listed] = [part for part in parts if part] or None
    if not given.get("backbone"):
        given.pop("backbone", None)
    return load_config(kind, path, given)


@app.command()
def demo(
    context: typer.Context,
    out: o.Out = None,
    train_rows: o.TrainRows = None,
    test_rows: o.TestRows = None,
    device: o.Device = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Run the main job on data that is installed already.

    Embeds 20,955 WordNet definitions with MiniLM, fits a certified head, and compares it with a
    tuned linear probe. Needs no network; the second run takes the features from the store.

    Example: convex-heads demo
    """
    options = _config(DemoConfig, context).fit_config()
    from tasks.console import make_reporter
    from tasks.fit import run_fit
    from tasks.show import show_fit, show_json

    record = run_fit(options, reporter=make_reporter(quiet))
    show_json(record) if json else show_fit(record)


@app.command()
def tasks(
    context: typer.Context,
    data_root: o.DataRoot = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List the named tasks and where their data is.

    Example: convex-heads tasks --data-root ~/data
    """
    options = _config(TasksConfig, context)
    from tasks.show import show_json, show_tasks
    from tasks.sources import list_tasks

    found = list_tasks(options.data_root)
    show_json({"tasks": found}) if json else show_tasks(found)


@app.command()
def extract(
    context: typer.Context,
    data: o.Data = None,
    backbone: o.Backbone = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    features_column: o.FeaturesColumn = None,
    train_rows: o.TrainRows = None,
    test_rows: o.TestRows = None,
    on_bad_row: o.OnBadRow = None,
    layer: o.Layer = None,
    pooling: o.Pooling = None,
    projection: o.Projection = None,
    prompt: o.Prompt = None,
    normalize: o.Normalize = None,
    max_length: o.MaxLength = None,
    long_text: o.LongText = None,
    autocast: o.Autocast = None,
    quantize: o.Quantize = None,
    trust_remote_code: o.TrustRemoteCode = None,
    store_dtype: o.StoreDtype = None,
    device: o.Device = None,
    engine: o.Engine = None,
    workers: o.Workers = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Embed every row of DATA once, into a store.

    The same command again continues where it was stopped, or finds the store complete.

    Example: convex-heads extract reviews.csv --backbone minilm
    """
    options = _config(ExtractConfig, context)
    from tasks.console import make_reporter
    from tasks.extraction import run_extract
    from tasks.show import show_extract, show_json

    record = run_extract(options, reporter=make_reporter(quiet))
    show_json(record) if json else show_extract(record)


@app.command()
def fit(
    context: typer.Context,
    data: o.Data = None,
    backbone: o.Backbone = None,
    out: o.Out = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    features_column: o.FeaturesColumn = None,
    train_rows: o.TrainRows = None,
    test_rows: o.TestRows = None,
    on_bad_row: o.OnBadRow = None,
    layer: o.Layer = None,
    pooling: o.Pooling = None,
    projection: o.Projection = None,
    prompt: o.Prompt = None,
    normalize: o.Normalize = None,
    max_length: o.MaxLength = None,
    long_text: o.LongText = None,
    autocast: o.Autocast = None,
    quantize: o.Quantize = None,
    trust_remote_code: o.TrustRemoteCode = None,
    store_dtype: o.StoreDtype = None,
    activation: o.Activation = None,
    loss: o.Loss = None,
    n_gates: o.NGates = None,
    gates: o.Gates = None,
    beta: o.Beta = None,
    selection: o.Selection = None,
    penalty: o.Penalty = None,
    solver: o.Solver = None,
    tolerance: o.Tolerance = None,
    max_seconds: o.MaxSeconds = None,
    class_weight: o.ClassWeight = None,
    calibrate: o.Calibrate = None,
    leak_check: o.LeakCheck = None,
    drop_leaks: o.DropLeaks = None,
    embed_samples: o.EmbedSamples = None,
    device: o.Device = None,
    devices: o.Devices = None,
    coordinator: o.Coordinator = None,
    processes: o.Processes = None,
    process: o.Process = None,
    engine: o.Engine = None,
    workers: o.Workers = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Fit a certified head on DATA, evaluate and save it.

    Features are extracted first where the store does not have them. The head is compared with a
    linear probe that is tuned on the same validation rows.

    Example: convex-heads fit reviews.csv --backbone minilm --out my-head
    """
    options = _config(FitConfig, context)
    from tasks.console import make_reporter
    from tasks.fit import run_fit
    from tasks.show import show_fit, show_json

    record = run_fit(options, reporter=make_reporter(quiet or bool(options.process)))
    if not options.process:  # of several processes one speaks
        show_json(record) if json else show_fit(record)


@app.command()
def finetune(
    context: typer.Context,
    data: o.Data = None,
    backbone: o.Backbone = None,
    unfreeze: o.Unfreeze = None,
    rounds: o.Rounds = None,
    out: o.Out = None,
    optimizer: o.Optimizer = None,
    learning_rate: o.LearningRate = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    accumulate: o.Accumulate = None,
    layer_decay: o.LayerDecay = None,
    weight_decay: o.WeightDecay = None,
    dropout: o.Dropout = None,
    lora: o.Lora = None,
    budget_seconds: o.BudgetSeconds = None,
    resume: o.Resume = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    features_column: o.FeaturesColumn = None,
    train_rows: o.TrainRows = None,
    test_rows: o.TestRows = None,
    on_bad_row: o.OnBadRow = None,
    layer: o.Layer = None,
    pooling: o.Pooling = None,
    projection: o.Projection = None,
    prompt: o.Prompt = None,
    normalize: o.Normalize = None,
    max_length: o.MaxLength = None,
    trust_remote_code: o.TrustRemoteCode = None,
    activation: o.Activation = None,
    loss: o.Loss = None,
    n_gates: o.NGates = None,
    gates: o.Gates = None,
    beta: o.Beta = None,
    selection: o.Selection = None,
    penalty: o.Penalty = None,
    solver: o.Solver = None,
    tolerance: o.Tolerance = None,
    class_weight: o.ClassWeight = None,
    calibrate: o.Calibrate = None,
    leak_check: o.LeakCheck = None,
    drop_leaks: o.DropLeaks = None,
    device: o.Device = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Train the top blocks of the backbone and the head in turn.

    Each round is kept only if the joint objective did not rise; validation rows choose what is
    saved. After Ctrl-C the best so far is saved, and --resume goes on.

    Example: convex-heads finetune reviews.csv --backbone minilm --unfreeze 2 --out my-model
    """
    options = _config(FinetuneConfig, context)
    from tasks.console import make_reporter
    from tasks.finetune import run_finetune
    from tasks.show import show_finetune, show_json

    record = run_finetune(options, reporter=make_reporter(quiet))
    show_json(record) if json else show_finetune(record)


@app.command()
def compare(
    context: typer.Context,
    data: o.Data = None,
    backbone: o.Backbones = None,
    methods: o.Methods = None,
    seeds: o.Seeds = None,
    shots: o.Shots = None,
    curve: o.Curve = None,
    embed_samples: o.EmbedRows = None,
    budget_seconds: o.BudgetSeconds = None,
    out: o.CompareOut = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    features_column: o.FeaturesColumn = None,
    train_rows: o.TrainRows = None,
    test_rows: o.TestRows = None,
    on_bad_row: o.OnBadRow = None,
    layer: o.Layer = None,
    pooling: o.Pooling = None,
    projection: o.Projection = None,
    prompt: o.Prompt = None,
    normalize: o.Normalize = None,
    max_length: o.MaxLength = None,
    long_text: o.LongText = None,
    autocast: o.Autocast = None,
    trust_remote_code: o.TrustRemoteCode = None,
    store_dtype: o.StoreDtype = None,
    activation: o.Activation = None,
    loss: o.Loss = None,
    n_gates: o.NGates = None,
    gates: o.Gates = None,
    beta: o.Beta = None,
    selection: o.Selection = None,
    penalty: o.Penalty = None,
    solver: o.Solver = None,
    tolerance: o.Tolerance = None,
    max_seconds: o.MaxSeconds = None,
    class_weight: o.ClassWeight = None,
    calibrate: o.Calibrate = None,
    leak_check: o.LeakCheck = None,
    drop_leaks: o.DropLeaks = None,
    device: o.Device = None,
    engine: o.Engine = None,
    workers: o.Workers = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Compare the head with other methods on DATA.

    All are tuned on validation rows, over several seeds; paired tests say what is worth its time.
    The same command goes on from what is finished.

    Example: convex-heads compare reviews.csv --backbone minilm --out comparison
    """
    options = _config(CompareConfig, context)
    from tasks.comparison import run_compare
    from tasks.console import make_reporter
    from tasks.show import show_comparison, show_json

    record = run_compare(options, reporter=make_reporter(quiet))
    show_json(record) if json else show_comparison(record)


@app.command()
def predict(
    context: typer.Context,
    artefact: o.Artefact = None,
    text: o.Text = None,
    input: o.Input = None,
    output: o.Output = None,
    format: o.Format = None,
    text_column: o.TextColumn = None,
    image_column: o.ImageColumn = None,
    features_column: o.FeaturesColumn = None,
    on_bad_row: o.OnBadRow = None,
    trust_remote_code: o.TrustRemoteCode = None,
    device: o.Device = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Label new texts or images with a saved head.

    Example: convex-heads predict my-head --text "a fine film" --text "a waste of time"
    """
    options = _config(PredictConfig, context)
    from tasks.console import make_reporter
    from tasks.predict import run_predict

    run_predict(options, as_json=json, reporter=make_reporter(quiet))


@app.command()
def evaluate(
    context: typer.Context,
    artefact: o.Artefact = None,
    data: o.Data = None,
    split: o.Split = None,
    by: o.By = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    features_column: o.FeaturesColumn = None,
    on_bad_row: o.OnBadRow = None,
    trust_remote_code: o.TrustRemoteCode = None,
    device: o.Device = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Measure a saved head on other labelled rows.

    Accuracy, F1, NLL and calibration with 95% intervals, also for each value of a column.

    Example: convex-heads evaluate my-head new-reviews.csv --by source
    """
    options = _config(EvaluateConfig, context)
    from tasks.console import make_reporter
    from tasks.evaluate import run_evaluate
    from tasks.show import show_evaluation, show_json

    record = run_evaluate(options, reporter=make_reporter(quiet))
    show_json(record) if json else show_evaluation(record)


@app.command()
def refit(
    context: typer.Context,
    artefact: o.Artefact = None,
    data: o.Data = None,
    out: o.RefitOut = None,
    data_root: o.DataRoot = None,
    text_column: o.TextColumn = None,
    image_column: o.ImageColumn = None,
    label_column: o.LabelColumn = None,
    features_column: o.FeaturesColumn = None,
    on_bad_row: o.OnBadRow = None,
    tolerance: o.Tolerance = None,
    max_seconds: o.MaxSeconds = None,
    trust_remote_code: o.TrustRemoteCode = None,
    device: o.Device = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Add labelled rows, also of new classes, to a saved head.

    The head is solved again on its own rows, from their store, and the new ones.

    Example: convex-heads refit my-head more-reviews.csv --out my-head-2
    """
    options = _config(RefitConfig, context)
    from tasks.console import make_reporter
    from tasks.refit import run_refit
    from tasks.show import show_json, show_refit

    record = run_refit(options, reporter=make_reporter(quiet))
    show_json(record) if json else show_refit(record)


@app.command()
def export(
    context: typer.Context,
    artefact: o.Artefact = None,
    format: o.ExportFormat = None,
    out: o.ExportOut = None,
    with_backbone: o.WithBackbone = None,
    trust_remote_code: o.TrustRemoteCode = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Write a saved head for ONNX or torch.

    The file takes features, or with --with-backbone tokens or pixels; it is run and compared with
    the head before it appears.

    Example: convex-heads export my-head --format onnx --out head.onnx
    """
    options = _config(ExportConfig, context)
    from tasks.console import make_reporter
    from tasks.export import run_export
    from tasks.show import show_export, show_json

    record = run_export(options, reporter=make_reporter(quiet))
    show_json(record) if json else show_export(record)


@app.command()
def serve(
    context: typer.Context,
    artefact: o.Artefact = None,
    host: o.Host = None,
    port: o.Port = None,
    max_batch: o.MaxBatch = None,
    max_queue: o.MaxQueue = None,
    max_rows: o.MaxRows = None,
    max_body_mb: o.MaxBodyMb = None,
    timeout_seconds: o.TimeoutSeconds = None,
    shutdown_seconds: o.ShutdownSeconds = None,
    trust_remote_code: o.TrustRemoteCode = None,
    device: o.Device = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Answer requests over HTTP with a saved head.

    POST /predict, GET /health, GET /metrics, and a page to try it at /. Only this machine can
    reach it unless --host says otherwise.

    Example: convex-heads serve my-head --port 8000
    """
    options = _config(ServeConfig, context)
    from tasks.console import make_reporter
    from tasks.serve import run_serve

    run_serve(options, reporter=make_reporter(quiet))


@app.command()
def info(
    context: typer.Context,
    path: o.StoreOrArtefact = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Say what a store or an artefact is, and verify it.

    Example: convex-heads info my-head
    """
    options = _config(InfoConfig, context)
    from tasks.info import inspect_path
    from tasks.show import show_inspection, show_json

    found = inspect_path(options.path)
    show_json(found) if json else show_inspection(found)


@app.command()
def cache(
    context: typer.Context,
    action: o.CacheAction = None,
    stores: o.Stores = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List, verify, compact or remove feature stores.

    ls lists them. verify reads every byte and names what is damaged. compact merges small shards,
    for faster reading. rm deletes.

    Example: convex-heads cache compact imdb-minilm
    """
    options = _config(CacheConfig, context)
    from tasks.cache import run_cache
    from tasks.console import make_reporter

    run_cache(options, as_json=json, reporter=make_reporter(quiet))


@app.command()
def doctor(
    context: typer.Context,
    data_root: o.DataRoot = None,
    cache_dir: o.CacheDir = None,
    seed: o.Seed = None,
    config: o.Config = None,
    json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Look for what is missing on this machine.

    Reports versions, devices, threads, data and caches, and what to do about what is wrong.

    Example: convex-heads doctor
    """
    options = _config(TasksConfig, context)
    from tasks.doctor import examine
    from tasks.show import show_checks, show_json

    checks = examine(options.data_root, options.cache_dir)
    show_json({"checks": checks}) if json else show_checks(checks)
    if any(check.status == "broken" for check in checks):
        raise typer.Exit(1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line on `argv` (default: this process's own) and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    # All must be in place before the library in question is first imported. JAX would take most
    # of a GPU's memory at once and leave none to torch; tokenizers would warn of forked processes.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    keep_compiled_code()
    if "--quiet" in arguments:  # downloads too
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        code = app(arguments, prog_name="convex-heads", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            raise
        code, message = explain(error)
        print(f"error: {message}", file=sys.stderr)
        return code
    if code == 130:
        print(_INTERRUPTED, file=sys.stderr)
    return code if isinstance(code, int) else 0


_INTERRUPTED = "interrupted; what was finished is kept, and the same command continues from there"


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and the one line that is said about it.

    >>> explain(InputError("reviews.csv is empty"))
    (2, 'reviews.csv is empty')
    """
    if isinstance(error, InputError):
        return 2, _one_line(error)
    if isinstance(error, MachineError):
        return 1, _one_line(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return 130, _INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return 1, "the program that read the output has gone"
    # A GPU that is full: JAX's status code, torch's exception.
    full = "RESOURCE_EXHAUSTED" in str(error) or type(error).__name__ == "OutOfMemoryError"
    if isinstance(error, MemoryError) or full:
        return 1, "out of memory; use fewer rows (--train-rows) or fewer gates (--n-gates)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 1, f"no space left on the disk of {error.filename or 'the output'}"
    # Click's usage errors; typer carries a copy of click whose classes have no public place.
    say: Any = getattr(error, "format_message", None)
    if say is not None:
        return getattr(error, "exit_code", 2), f"{' '.join(say().split()).rstrip('.')}; see --help"
    return 1, f"{type(error).__name__}: {_one_line(error)} (--debug shows where)"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
