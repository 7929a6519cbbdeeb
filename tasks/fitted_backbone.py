"""The backbone that a saved head was fitted on, found again and checked to be the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from extractors.base import Extractor
from extractors.changes import with_changes
from extractors.errors import InputError
from extractors.options import FeatureOptions
from tasks.config_base import check_device
from tasks.devices import require_device
from tasks.fetch import folder_of


def fitted_backbone(
    name: str,
    config: Mapping[str, Any],
    changes: Mapping[str, np.ndarray],
    *,
    device: str | None = None,
    trust_remote_code: str | None = None,
    given: Extractor | None = None,
) -> Extractor:
    """The extractor, with its fine-tuned weights where there are some.

    Args:
        name: of the backbone, where it is now.
        config: of the artefact; what the features must depend on.
        changes: weights that were fine-tuned.
        device: a torch device; None takes a GPU when there is one.
        trust_remote_code: the backbone's own id, if its Python code may run.
        given: the backbone itself, where it has no name that can be loaded.

    Raises:
        InputError: it is not there, or gives other features than those the head was fitted on.
        MachineError: it cannot be loaded, or the device is not there.
    """
    from extractors import load_extractor

    if given is None:
        check_device(device)
        require_device(device)
    options = FeatureOptions.from_chosen(
        config.get("backbone_options", {}), trust_remote_code=trust_remote_code
    )
    try:
        extractor = given or load_extractor(name, device=device, options=options)
    except InputError as error:
        local = folder_of(name) or ""
        if local.startswith("./"):  # as it was published, see `tasks.fetch.hide_places`
            raise InputError(
                f"this head was fitted on a backbone in a folder named {Path(local).name}, which "
                "is no part of it, and there is none here: ask its author for that folder, and say "
                f"where it is with --backbone {name.partition(':')[0]}:FOLDER"
            ) from error
        raise InputError(
            f"the backbone that this head was fitted on is not there ({error}): if it has moved, "
            "say where it is now with --backbone NAME"
        ) from error
    if changes:
        extractor = with_changes(extractor, changes)
    fitted, found = config["backbone_fingerprint"], extractor.fingerprint()
    if found != fitted:
        differs = sorted(
            key for key in fitted.keys() | found.keys() if fitted.get(key) != found.get(key)
        )
        raise InputError(
            f"the backbone {name} is not the one this head was fitted on ({', '.join(differs)} "
            "differ): restore that version, or fit again"
        )
    return extractor
