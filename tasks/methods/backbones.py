"""Methods that train the backbone itself; this version has none of them.

They are named so that asking for one gives a row that says so, and not a misspelt name.
"""

from __future__ import annotations

from tasks.methods.base import Fitted, Problem, Unavailable

_LATER = "{} trains the backbone, and this version compares heads on frozen features only"


def fit_lora(problem: Problem) -> Fitted:
    """Not there yet."""
    raise Unavailable(_LATER.format("LoRA"))


def fit_finetune(problem: Problem) -> Fitted:
    """Not there yet."""
    raise Unavailable(_LATER.format("fine-tuning"))


def fit_setfit(problem: Problem) -> Fitted:
    """Not there yet."""
    raise Unavailable(_LATER.format("SetFit"))
