"""A softmax head on features shaped like those of ImageNet, fitted from a memory-mapped file.

The rows are drawn (imagenet_shaped.py) and written to --folder, or to a temporary one, as float16:
1,281,167 of them divided by --scale. minutes: of the whole fit, compiling and certificate included.
TFLOP/s: 4 n d P C operations for every data pass, over the seconds of the solver after its first
steps (in which it is compiled); `of plain` is that over the speed of a product of matrices with
these shapes in the same run. peak MB: of the device where there is one; otherwise highest RssAnon
(Linux) above that before the fit. predicted: that of convex_heads.cost, of program and solver.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from imagenet_shaped import IMAGENET_ROWS, ImageNetShaped
from memory import Peak, settle
from shared import Row, parser, show

from convex_heads import ConvexHeadClassifier
from convex_heads.cost import Shape
from convex_heads.solution import Record
from tasks.compile_clock import compile_clock

_TEST_ROWS = 10_000
_PRODUCT_ROWS = 8192
_SAMPLE_SECONDS = 0.02


def plain_product(n: int, d: int, columns: int, repeats: int = 5) -> float:
    """Operations per second of X (n, d) times (d, columns), the median of some."""
    A = jnp.ones((min(n, _PRODUCT_ROWS), d), jnp.float32)
    B = jnp.ones((d, columns), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(A, B).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(A, B).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * len(A) * d * columns / float(np.median(seconds))


def fit_row(
    X: np.memmap, y: np.ndarray, drawn: ImageNetShaped, gates: int, beta: float, gap: float
) -> Row:
    """One line of the table."""
    head = ConvexHeadClassifier(n_gates=gates, beta=beta, penalty="group", tolerance=gap)
    records: list[tuple[Record, float]] = []
    device = jax.devices()[0]
    before = settle()
    start = time.perf_counter()
    with Peak(_SAMPLE_SECONDS) as peak, compile_clock() as compiling:
        head.fit(X, y, on_record=lambda record: records.append((record, compiling.seconds)))
    seconds = time.perf_counter() - start
    held = (device.memory_stats() or {}).get("peak_bytes_in_use", peak.bytes - before)
    n, d = X.shape
    P, C = len(head.gates_), len(head.classes_)
    shape = Shape(n, d + 1, P, C)
    (first, before_it), (last, before_last) = records[0], records[-1]
    working = last.seconds - first.seconds - (before_last - before_it)
    rate = (last.passes - first.passes) * shape.flops_per_pass / max(1e-9, working)
    X_test, y_test = drawn.rows("test", 0, min(_TEST_ROWS, n))
    best = np.argsort(-head.decision_function(X_test), axis=1)[:, :5]
    right = best == y_test[:, None]
    return {
        "n": n,
        "d": d,
        "C": C,
        "P": P,
        "gap": head.certificate_.relative_gap,
        "passes": float(head.passes_),
        "minutes": seconds / 60,
        "solving": last.seconds / 60,
        "TFLOP/s": rate / 1e12,
        "of plain": rate / plain_product(n, d + 1, P * C),
        "peak MB": held / 2**20,
        "predicted": shape.memory / 2**20,
        "top-1": float(right[:, 0].mean()),
        "top-5": float(right.any(axis=1).mean()),
    }


def main() -> None:
    """The command line."""
    command = parser(__doc__)
    add = command.add_argument
    add("--scale", type=int, default=64, help="ImageNet's rows are divided by it; 1, 8, 64")
    add("--rows", type=int, help="so many rows in place of that")
    add("--dim", type=int, default=384, help="features")
    add("--classes", type=int, default=1000, help="classes")
    add("--gates", type=int, nargs="+", default=[8], help="P, the first always on")
    add("--margin", type=float, default=4.0, help="half the distance of two means, in noise")
    add("--decay", type=float, default=1.0, help="exponent of the spectrum")
    add("--beta", type=float, default=0.03, help="fraction of beta_max")
    add("--gap", type=float, default=1e-2, help="relative gap to reach")
    add("--seed", type=int, default=0, help="of the rows")
    add("--folder", type=Path, help="where the rows are written; None: a temporary one")
    options = command.parse_args()
    drawn = ImageNetShaped(
        options.dim, options.classes, options.margin, options.decay, seed=options.seed
    )
    n = options.rows or IMAGENET_ROWS // options.scale
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        X, y = drawn.write(Path(folder) / "train.npy", n)
        rows = [fit_row(X, y, drawn, P, options.beta, options.gap) for P in options.gates]
    kind = jax.devices()[0].device_kind
    show(f"beta / beta_max {options.beta}, margin {options.margin}, {kind}", rows, options)


if __name__ == "__main__":
    main()
