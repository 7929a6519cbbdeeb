"""The command line's options: name, form and one line of help each, once for all verbs.

Types are plain strings, numbers too; what they may be is decided in config.py, so that a flag and a
TOML key are refused with the same sentence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

Data = Annotated[
    str | None,
    Argument(help="Task name, file, folder, or hub:owner/name[:config].", metavar="DATA"),
]
Backbone = Annotated[
    str | None,
    Option(help="minilm, st:..., hf:... or timm:ID[@REV].", metavar="NAME"),
]
DataRoot = Annotated[
    Path | None, Option(help="Folder with TASK/train.parquet and so on.", metavar="DIR")
]
TextColumn = Annotated[
    str | None, Option(help="Column with the texts, or two: A+B.", metavar="NAME")
]
ImageColumn = Annotated[str | None, Option(help="Column with the images.", metavar="NAME")]
FeaturesColumn = Annotated[
    str | None, Option(help="Column with vectors computed before.", metavar="NAME")
]
IdColumn = Annotated[
    str | None, Option(help="Column that names the rows [numbers].", metavar="NAME")
]
LabelColumn = Annotated[str | None, Option(help="Column with the labels.", metavar="NAME")]
Classes = Annotated[list[str] | None, Option(help="Rows of these classes only.", metavar="A,B,...")]
TrainRows = Annotated[str | None, Option(help="Learn from so many rows only.", metavar="N")]
TestRows = Annotated[str | None, Option(help="Test on so many rows only.", metavar="N")]
OnBadRow = Annotated[
    str | None, Option(help="What a row that cannot be used does [fail].", metavar="fail|skip")
]
Layer = Annotated[
    str | None, Option(help="Hidden layers, -1 the last, side by side.", metavar="-1|-1,-4|...")
]
Pooling = Annotated[
    str | None, Option(help="[the model's]", metavar="mean|cls|last|max|cls+mean|gem")
]
Projection = Annotated[
    str | None, Option(help="Of the model, such as CLIP's.", metavar="before|after")
]
Prompt = Annotated[str | None, Option(help="Put before every text.", metavar="TEXT")]
Normalize = Annotated[str | None, Option(help="[the model's]", metavar="none|l2")]
MaxLength = Annotated[str | None, Option(help="Tokens read of a text.", metavar="N")]
LongText = Annotated[str | None, Option(help="[truncate]", metavar="truncate|windows")]
Pairs = Annotated[
    str | None, Option(help="One text of A+B, or two [text].", metavar="text|embeddings")
]
Autocast = Annotated[
    str | None, Option(help="[none]; the error is recorded.", metavar="none|bfloat16|float16")
]
Quantize = Annotated[
    str | None, Option(help="[none], on a CPU; the error is recorded.", metavar="none|int8")
]
TrustRemoteCode = Annotated[
    str | None, Option(help="Run the Python code of this model.", metavar="MODEL")
]
StoreDtype = Annotated[
    str | None, Option(help="float32, float16 or int8 on disk [float32].", metavar="DTYPE")
]
Device = Annotated[
    str | None, Option(help="cpu, cuda, cuda:1, mps [best there is].", metavar="NAME")
]
Out = Annotated[Path | None, Option(help="Folder for the artefact [in the cache].", metavar="DIR")]
Engine = Annotated[str | None, Option(help="Where rows are encoded [local].", metavar="local|ray")]
Workers = Annotated[str | None, Option(help="Processes of --engine ray [2].", metavar="N")]

Activation = Annotated[
    str | None, Option(help="Of hidden units [gated_relu].", metavar="gated_relu|relu")
]
Loss = Annotated[str | None, Option(metavar="auto|softmax|logistic|squared")]
NGates = Annotated[str | None, Option(help="Gates to choose from [auto].", metavar="auto|grow|N")]
FixedGates = Annotated[
    str | None, Option("--n-gates", help="Gates to choose from [auto].", metavar="auto|N")
]
Gates = Annotated[
    str | None,
    Option(help="How they are drawn [aligned].", metavar="aligned|gaussian|geometric|pairs"),
]
Beta = Annotated[
    str | None, Option(help="Penalty, as a fraction of beta_max [auto].", metavar="auto|FRACTION")
]
Selection = Annotated[
    str | None,
    Option(
        help="Least validation loss or one-SE rule [best].",
        metavar="best|one-se",
    ),
]
Penalty = Annotated[
    str | None, Option(help="Of the weights [auto; finetune: group].", metavar="auto|group|ridge")
]
# kernel stands in the help: in the metavar it is one too many for a terminal of 40 columns.
Solver = Annotated[
    str | None,
    Option(help="Or kernel, of ridge heads [auto].", metavar="auto|subspace|fista|descent|admm"),
]
Tolerance = Annotated[str | None, Option(help="Relative duality gap to stop at.", metavar="GAP")]
Precision = Annotated[
    str | None, Option(help="Products: float32, tf32, bfloat16 [float32].", metavar="DTYPE")
]
MaxSeconds = Annotated[str | None, Option(help="Limit of one solve [none].", metavar="SECONDS")]
ClassWeight = Annotated[
    str | None, Option(help="Balanced: classes weigh alike [none].", metavar="none|balanced")
]
Calibrate = Annotated[
    str | None, Option(help="By validation rows [temperature].", metavar="none|temperature")
]
LeakCheck = Annotated[
    bool | None,
    Option("--leak-check/--no-leak-check", help="Look for duplicates [on].", show_default=False),
]
DropLeaks = Annotated[
    bool | None,
    Option("--drop-leaks", help="Leave them out of train and validation."),
]
EmbedSamples = Annotated[
    bool | None, Option("--embed-samples", help="Keep 20 test rows that it gets wrong.")
]
Comparison = Annotated[Path | None, Option(help="Of `compare`, for the model card.", metavar="DIR")]
Devices = Annotated[
    str | None, Option(help="JAX devices to spread rows over [1].", metavar="N|all")
]
Coordinator = Annotated[
    str | None, Option(help="Where process 0 of several is.", metavar="HOST:PORT")
]
Processes = Annotated[str | None, Option(help="How many fit together.", metavar="N")]
Process = Annotated[str | None, Option(help="Which of them this is, from 0.", metavar="I")]
DryRun = Annotated[bool | None, Option("--dry-run", help="Predict the cost, fit nothing.")]
AsMachine = Annotated[
    str | None, Option("--as", help="Machine to predict --dry-run for.", metavar="1xH200")
]
CheckpointMinutes = Annotated[
    str | None, Option(help="Keep the solver's state so often [5].", metavar="MINUTES")
]

Unfreeze = Annotated[str | None, Option(help="Blocks to train, from the top [1].", metavar="K")]
Rounds = Annotated[str | None, Option(help="At most so many [5].", metavar="R")]
Optimizer = Annotated[
    str | None, Option(help="Of the blocks [adamw].", metavar="adamw|schedule-free|prodigy")
]
LearningRate = Annotated[str | None, Option(help="[found by a range test]", metavar="RATE")]
Epochs = Annotated[str | None, Option(help="Of the blocks in a round [1].", metavar="N")]
BatchSize = Annotated[str | None, Option(help="Rows of a step [32].", metavar="N")]
Accumulate = Annotated[str | None, Option(help="Parts a step is taken in [1].", metavar="N")]
LayerDecay = Annotated[
    str | None, Option(help="Rate of a block by that above it [1].", metavar="F")
]
WeightDecay = Annotated[str | None, Option(help="Of the blocks [0.01].", metavar="F")]
Dropout = Annotated[
    bool | None,
    Option("--dropout/--no-dropout", help="The backbone's own [off].", show_default=False),
]
Lora = Annotated[str | None, Option(help="Rank of low-rank changes to blocks.", metavar="RANK")]
BudgetSeconds = Annotated[str | None, Option(help="Time for training.", metavar="SECONDS")]
Resume = Annotated[bool | None, Option("--resume", help="Go on from the checkpoint.")]

Backbones = Annotated[
    list[str] | None,
    Option("--backbone", help="May be repeated: also side by side.", metavar="NAME"),
]
MovedBackbone = Annotated[
    str | None, Option("--backbone", help="Where its folder is now.", metavar="NAME")
]
CompareOut = Annotated[
    Path | None, Option(help="Folder of the report [in the cache].", metavar="DIR")
]
Methods = Annotated[
    list[str] | None, Option(help="[those that fit the data]", metavar="linear,convex,...")
]
Seeds = Annotated[str | None, Option(help="Draws of rows, gates and weights [5].", metavar="K")]
Shots = Annotated[
    list[str] | None, Option(help="Training rows of every class.", metavar="1,2,4,...")
]
EmbedRows = Annotated[
    bool | None, Option("--embed-samples", help="Show rows in the report, not ids alone.")
]
EachBudget = Annotated[str | None, Option(help="Per seed, to train a backbone.", metavar="SECONDS")]
Curve = Annotated[bool | None, Option("--curve", help="Learning curves over train size.")]

Artefact = Annotated[str | None, Argument(help="Folder with a saved head.", metavar="ARTEFACT")]
StoreOrArtefact = Annotated[
    Path | None, Argument(help="Folder that `extract` or `fit` wrote.", metavar="PATH")
]
CacheAction = Annotated[
    str | None, Argument(help="What to do [ls].", metavar="ls|verify|compact|rm")
]
Stores = Annotated[
    list[str] | None, Argument(help="Folder, or name or start of a name.", metavar="STORE...")
]
Text = Annotated[list[str] | None, Option(help="A text; may be repeated.", metavar="T")]
Input = Annotated[
    Path | None,
    Option(help="Table, folder, image, or texts, one a line (- is stdin).", metavar="PATH"),
]
Output = Annotated[Path | None, Option(help="File to write [stdout].", metavar="FILE")]
Format = Annotated[
    str | None,
    Option(help="Of the output [table, or its suffix].", metavar="table|json|jsonl|csv|parquet"),
]
Split = Annotated[
    str | None, Option(help="Rows to measure [test, or all].", metavar="train|validation|test")
]
By = Annotated[str | None, Option(help="Metrics for each value of a column.", metavar="COLUMN")]
RefitOut = Annotated[
    Path | None, Option("--out", help="Folder for the new artefact.", metavar="DIR")
]
Host = Annotated[str | None, Option(help="Address to listen on [127.0.0.1].", metavar="HOST")]
Port = Annotated[str | None, Option(help="[8000]; 0 takes a free one.", metavar="N")]
MaxBatch = Annotated[str | None, Option(help="Rows encoded together [64].", metavar="N")]
MaxQueue = Annotated[str | None, Option(help="Rows that may wait [256].", metavar="N")]
MaxRows = Annotated[str | None, Option(help="Rows in one request [256].", metavar="N")]
MaxBodyMb = Annotated[str | None, Option(help="Of one request [16].", metavar="MB")]
MaxMegapixels = Annotated[str | None, Option(help="Of one image [64].", metavar="N")]
TimeoutSeconds = Annotated[
    str | None, Option(help="A request waits, then 504 [60].", metavar="SECONDS")
]
ShutdownSeconds = Annotated[str | None, Option(help="To finish at the end [30].", metavar="N")]
ExportFormat = Annotated[
    str | None, Option("--format", help="[as --out is called: .onnx or .pt2]", metavar="onnx|torch")
]
ExportOut = Annotated[Path | None, Option("--out", help="File to write.", metavar="PATH")]
WithBackbone = Annotated[
    bool | None, Option("--with-backbone", help="From tokens or pixels, not from features.")
]

CacheDir = Annotated[
    Path | None, Option(help="Where stores lie [CONVEX_HEADS_CACHE].", metavar="DIR")
]
Seed = Annotated[str | None, Option(help="Seed of everything random [0].", metavar="N")]
Config = Annotated[
    Path | None, Option(help="Options as a TOML file; flags win.", metavar="FILE.toml")
]
Json = Annotated[bool, Option("--json", help="One JSON object on stdout.")]
Quiet = Annotated[bool, Option("--quiet", help="No progress, no notes.")]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of an error.")]
