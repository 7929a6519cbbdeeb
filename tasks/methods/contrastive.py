"""SetFit: contrastive fine-tuning of a sentence encoder, then a logistic regression on it.

Tunstall et al. 2022, "Efficient few-shot learning without prompts", by its authors' library.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.methods.base import Fitted, Part, Problem, Unavailable
from tasks.methods.settings import SETTINGS

_TRIED = SETTINGS["setfit"]
_STEPS, _BATCH, _RATE = _TRIED["steps"], _TRIED["batch"], _TRIED["rate"]


def fit(problem: Problem) -> Fitted:
    """The library's recipe at its defaults, at most 500 contrastive steps or the time given."""
    texts, given = problem.train.texts, problem.backbone
    if texts is None or given is None:
        raise Unavailable("SetFit trains a sentence encoder, and these rows are no texts of one")
    if given.name.split(":")[0] not in ("st", "minilm"):
        raise Unavailable("SetFit trains sentence-transformers models: name one with st:...")
    from extractors.torchvision_compat import ensure_torchvision_imports

    ensure_torchvision_imports()
    try:
        from setfit import (  # pyright: ignore[reportMissingImports]
            SetFitModel,
            Trainer,
            TrainingArguments,
        )
    except ImportError as error:
        raise Unavailable(
            f"SetFit cannot be imported here ({error}): pip install 'convex-heads[setfit]', and "
            "if it is installed, it does not know this release of transformers yet"
        ) from error
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.utils import logging

    class _Clock(TrainerCallback):
        """Counts steps, and ends them when the time is up."""

        def __init__(self, seconds: float | None) -> None:
            self.steps, self.end = 0, None if seconds is None else time.monotonic() + seconds

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.steps += 1
            if self.end is not None and time.monotonic() > self.end:
                control.should_training_stop = True

    from sklearn.linear_model import LogisticRegression

    from extractors import load_extractor

    extractor: Any = load_extractor(given.name, device=given.device)
    assert extractor.dim  # loaded
    model = SetFitModel(
        model_body=extractor._model,
        model_head=LogisticRegression(max_iter=1000, class_weight=problem.class_weight),
        labels=[str(c) for c in range(problem.n_classes)],
    )
    logging.disable_progress_bar()  # this process is the method's own
    clock = _Clock(problem.budget_seconds)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            batch_size=_BATCH,
            max_steps=_STEPS,
            body_learning_rate=_RATE,
            seed=problem.seed,
            save_strategy="no",
            report_to="none",
            show_progress_bar=False,
        )
        rows = Dataset.from_dict({"text": list(texts), "label": problem.train.labels.tolist()})
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock]).train()

    def predict_proba(part: Part) -> NDArray[np.floating]:
        assert part.texts is not None
        found = model.predict_proba(list(part.texts), as_numpy=True, show_progress_bar=False)
        return np.asarray(found, np.float64)

    return Fitted(
        predict_proba,
        settings_tried=1,
        chosen={"steps": clock.steps, "rate": _RATE},
        parameters=sum(p.numel() for p in extractor._model.parameters()),
    )
