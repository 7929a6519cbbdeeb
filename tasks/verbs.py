"""The verbs of the command line: the options of each, its help, and what it calls.

An option is named after the field of the configuration that it fills; where another verb's option
of that name reads differently, the one that is meant is named beside it. Nothing heavy is imported
before a verb runs.
"""

from __future__ import annotations

import typer

from tasks import options as o
from tasks.config import CompareConfig, DemoConfig, ExtractConfig, FinetuneConfig, FitConfig
from tasks.config_saved import (
    CacheConfig,
    EvaluateConfig,
    ExportConfig,
    InfoConfig,
    PredictConfig,
    RefitConfig,
    ServeConfig,
    TasksConfig,
)
from tasks.verb import Output, app, verb

__all__ = ["app"]

_ROWS = (
    "data_root text_column image_column label_column features_column classes train_rows "
    "test_rows on_bad_row"
)
_RAW_ROWS = _ROWS.replace("features_column ", "")  # vectors have no blocks to train
_SAVED_ROWS = "data_root text_column image_column label_column features_column classes on_bad_row"
_FEATURES = "layer pooling projection prompt normalize max_length"
_LONG = "long_text pairs autocast"
_HEAD = "gates beta selection penalty solver tolerance"
_JUDGED = "class_weight calibrate leak_check drop_leaks"
_WHERE = "device engine workers"
# What `--help` leaves to `--help-all` where a verb has many options.
_SELDOM = (
    "features_column classes projection prompt normalize max_length pairs autocast quantize "
    "trust_remote_code store_dtype gates selection solver tolerance precision max_seconds "
    "leak_check drop_leaks embed_samples comparison engine workers devices coordinator processes "
    "process checkpoint_minutes machine"
)
_OF_FEATURES = "data_root layer pooling long_text"
_OF_BLOCKS = "epochs batch_size accumulate layer_decay weight_decay dropout lora optimizer"
_MOVED = {"backbone": o.MovedBackbone}


@verb(DemoConfig, "out train_rows test_rows device")
def demo(config: DemoConfig, output: Output) -> None:
    """Run the main job on data that is installed already.

    Embeds 20,955 WordNet definitions with MiniLM, fits a certified head, and compares it with a
    tuned linear probe. Needs no network; the second run takes the features from the store.

    Example: convex-heads demo
    """
    from tasks.fit import run_fit
    from tasks.show import show_fit

    record = run_fit(config.fit_config(), reporter=output.reporter)
    output.show(record, show_fit)


@verb(TasksConfig, "data_root")
def tasks(config: TasksConfig, output: Output) -> None:
    """List the named tasks and where their data is.

    Example: convex-heads tasks --data-root ~/data
    """
    from tasks.data.sources import list_tasks
    from tasks.show import show_tasks

    found = list_tasks(config.data_root)
    output.show({"tasks": found}, lambda _: show_tasks(found))


@verb(
    ExtractConfig,
    "data backbone",
    _ROWS,
    _FEATURES,
    _LONG,
    "quantize trust_remote_code store_dtype",
    _WHERE,
    seldom="features_column classes projection quantize trust_remote_code autocast",
)
def extract(config: ExtractConfig, output: Output) -> None:
    """Embed every row of DATA once, into a store.

    The same command again continues where it was stopped, or finds the store complete.

    Example: convex-heads extract reviews.csv --backbone minilm
    """
    from tasks.extraction import run_extract
    from tasks.show import show_extract

    record = run_extract(config, reporter=output.reporter)
    output.show(record, show_extract)


@verb(
    FitConfig,
    "data backbone out",
    _ROWS,
    _FEATURES,
    _LONG,
    "quantize trust_remote_code store_dtype",
    "activation loss n_gates",
    _HEAD,
    "precision max_seconds",
    _JUDGED,
    "embed_samples comparison",
    _WHERE,
    "devices coordinator processes process checkpoint_minutes dry_run",
    {"machine": o.AsMachine},
    seldom=f"{_SELDOM} {_OF_FEATURES}",
)
def fit(config: FitConfig, output: Output) -> None:
    """Fit a certified head on DATA, evaluate and save it.

    Extracts the features that the store lacks; tunes a linear probe beside it.

    Example: convex-heads fit reviews.csv --backbone minilm --out my-head
    """
    from tasks.console import make_reporter
    from tasks.fit import run_fit
    from tasks.show import show_fit

    if config.dry_run:
        from tasks.dry_run import forecast, show_forecast

        output.show(forecast(config, reporter=output.reporter), show_forecast)
        return
    silent = bool(config.process)  # of several processes one speaks
    record = run_fit(config, reporter=make_reporter(output.quiet or silent))
    if not silent:
        output.show(record, show_fit)


@verb(
    FinetuneConfig,
    "data backbone unfreeze rounds out optimizer learning_rate epochs batch_size "
    "accumulate layer_decay weight_decay dropout lora budget_seconds resume",
    _RAW_ROWS,
    _FEATURES,
    "trust_remote_code activation loss",
    {"n_gates": o.FixedGates},
    _HEAD,
    _JUDGED,
    "device",
    seldom=f"{_SELDOM} {_OF_FEATURES} {_OF_BLOCKS} activation loss",
)
def finetune(config: FinetuneConfig, output: Output) -> None:
    """Train the top blocks of the backbone and the head in turn.

    Each round is kept only if the joint objective did not rise; validation rows choose what is
    saved. After Ctrl-C the best so far is saved, and --resume goes on.

    Example: convex-heads finetune reviews.csv --backbone minilm --unfreeze 2 --out my-model
    """
    from tasks.cronos_am.finetune import run_finetune
    from tasks.show import show_finetune

    record = run_finetune(config, reporter=output.reporter)
    output.show(record, show_finetune)


@verb(
    CompareConfig,
    "data",
    {"backbone": o.Backbones},
    "methods seeds shots curve",
    {"embed_samples": o.EmbedRows},
    {"budget_seconds": o.EachBudget},
    {"out": o.CompareOut},
    _ROWS,
    _FEATURES,
    _LONG,
    "trust_remote_code store_dtype",
    "activation loss n_gates",
    _HEAD,
    "precision max_seconds",
    _JUDGED,
    _WHERE,
    seldom=f"{_SELDOM} {_OF_FEATURES} activation loss",
)
def compare(config: CompareConfig, output: Output) -> None:
    """Compare the head with other methods on DATA.

    All are tuned on validation rows, over several seeds; paired tests say what is worth its time.
    The same command goes on from what is finished. Methods: linear, convex, ridge, knn, svm, mlp,
    ntk, cronos, tfidf; if named, relu, tabicl, tabpfn, cronos-am, lora, finetune, setfit. Options
    from --activation to --max-seconds are the convex head's.

    Example: convex-heads compare reviews.csv --backbone minilm --out comparison
    """
    from tasks.comparison.run import run_compare
    from tasks.show import show_comparison

    record = run_compare(config, reporter=output.reporter)
    output.show(record, show_comparison)


@verb(
    PredictConfig,
    "artefact text input output format text_column image_column features_column id_column",
    "on_bad_row",
    _MOVED,
    "trust_remote_code device",
)
def predict(config: PredictConfig, output: Output) -> None:
    """Label new texts or images with a saved head.

    Example: convex-heads predict my-head --text "a fine film" --text "a waste of time"
    """
    from tasks.predict import run_predict

    run_predict(config, as_json=output.json, reporter=output.reporter)


@verb(EvaluateConfig, "artefact data split by", _SAVED_ROWS, _MOVED, "trust_remote_code device")
def evaluate(config: EvaluateConfig, output: Output) -> None:
    """Measure a saved head on other labelled rows.

    Accuracy, F1, NLL and calibration with 95% intervals, also for each value of a column.

    Example: convex-heads evaluate my-head new-reviews.csv --by source
    """
    from tasks.evaluate import run_evaluate
    from tasks.show import show_evaluation

    record = run_evaluate(config, reporter=output.reporter)
    output.show(record, show_evaluation)


@verb(
    RefitConfig,
    "artefact data",
    {"out": o.RefitOut},
    _SAVED_ROWS,
    "tolerance max_seconds",
    _MOVED,
    "trust_remote_code device",
)
def refit(config: RefitConfig, output: Output) -> None:
    """Add labelled rows, also of new classes, to a saved head.

    The head is solved again on its own rows, from their store, and the new ones.

    Example: convex-heads refit my-head more-reviews.csv --out my-head-2
    """
    from tasks.refit import run_refit
    from tasks.show import show_refit

    record = run_refit(config, reporter=output.reporter)
    output.show(record, show_refit)


@verb(
    ExportConfig,
    "artefact",
    {"format": o.ExportFormat},
    {"out": o.ExportOut},
    "with_backbone",
    _MOVED,
    "trust_remote_code",
)
def export(config: ExportConfig, output: Output) -> None:
    """Write a saved head for ONNX or torch.

    The file takes features, or with --with-backbone tokens or pixels; it is run and compared with
    the head before it appears.

    Example: convex-heads export my-head --out head.onnx
    """
    from tasks.export import run_export
    from tasks.show import show_export

    record = run_export(config, reporter=output.reporter)
    output.show(record, show_export)


@verb(
    ServeConfig,
    "artefact host port max_batch max_queue max_rows max_body_mb max_megapixels",
    "timeout_seconds shutdown_seconds",
    _MOVED,
    "trust_remote_code device",
)
def serve(config: ServeConfig, output: Output) -> None:
    """Answer requests over HTTP with a saved head.

    POST /predict, GET /health, GET /metrics, and a page to try it at /. Only this machine can
    reach it unless --host says otherwise.

    Example: convex-heads serve my-head --port 8000
    """
    from tasks.serving.server import run_serve

    run_serve(config, reporter=output.reporter)


@verb(InfoConfig, {"path": o.StoreOrArtefact})
def info(config: InfoConfig, output: Output) -> None:
    """Say what a store or an artefact is, and verify it.

    Example: convex-heads info my-head
    """
    from tasks.info import inspect_path
    from tasks.show import show_inspection

    found = inspect_path(config.path)
    output.show(found, show_inspection)


@verb(CacheConfig, {"action": o.CacheAction}, "stores")
def cache(config: CacheConfig, output: Output) -> None:
    """List, verify, compact or remove feature stores.

    ls lists them, and activations and compiled code beside them. verify reads every byte and names
    what is damaged. compact merges small shards, for faster reading. rm deletes.

    Example: convex-heads cache compact imdb-minilm
    """
    from tasks.cache import run_cache

    run_cache(config, as_json=output.json, reporter=output.reporter)


@verb(TasksConfig, "data_root")
def doctor(config: TasksConfig, output: Output) -> None:
    """Look for what is missing on this machine.

    Reports versions, devices, threads, data and caches, and what to do about what is wrong.

    Example: convex-heads doctor
    """
    from tasks.doctor import examine
    from tasks.show import show_checks

    checks = examine(config.data_root, config.cache_dir)
    output.show({"checks": checks}, lambda _: show_checks(checks))
    if any(check.status == "broken" for check in checks):
        raise typer.Exit(1)
