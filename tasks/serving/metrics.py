"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from bisect import bisect_left
from threading import Lock

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of the process, and their text for Prometheus."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._answers: dict[int, int] = {}
        self._seconds = [0] * (len(_BUCKETS) + 1)
        self._seconds_sum = 0.0
        self._items = self._batches = 0
        self._batch_seconds = 0.0

    def answered(self, status: int, seconds: float) -> None:
        """Counts one answer to /predict."""
        with self._lock:
            self._answers[status] = self._answers.get(status, 0) + 1
            self._seconds[bisect_left(_BUCKETS, seconds)] += 1
            self._seconds_sum += seconds

    def batch(self, items: int, seconds: float) -> None:
        """Counts one batch."""
        with self._lock:
            self._items += items
            self._batches += 1
            self._batch_seconds += seconds

    def text(self, waiting: int) -> str:
        """In the Prometheus text format, version 0.0.4."""
        with self._lock:
            lines = ["# TYPE convex_heads_requests_total counter"]
            for status, n in sorted(self._answers.items()):
                lines.append(f'convex_heads_requests_total{{status="{status}"}} {n}')
            lines.append("# TYPE convex_heads_request_seconds histogram")
            total = 0
            for edge, n in zip((*_BUCKETS, "+Inf"), self._seconds, strict=True):
                total += n
                lines.append(f'convex_heads_request_seconds_bucket{{le="{edge}"}} {total}')
            lines.append(f"convex_heads_request_seconds_sum {self._seconds_sum:.6f}")
            lines.append(f"convex_heads_request_seconds_count {total}")
            for name, value in (
                ("items_total", self._items),
                ("batches_total", self._batches),
                ("batch_seconds_total", round(self._batch_seconds, 6)),
            ):
                lines += [f"# TYPE convex_heads_{name} counter", f"convex_heads_{name} {value}"]
            lines += [
                "# TYPE convex_heads_queue_items gauge",
                f"convex_heads_queue_items {waiting}",
            ]
        return "\n".join(lines) + "\n"
