"""Features of an ImageNet backbone for your images, kept on disk, and a certified head on them.

Run: python examples/imagenet_features.py [DATA] [BACKBONE] [TRAIN_ROWS] [TEST_ROWS]

DATA is an image folder with one folder per class, or a task such as cifar10 or imagenet-1k (from
the Hub or CONVEX_HEADS_DATA); the default is the digits of scikit-learn. BACKBONE is any model of
timm.
"""

import sys

import numpy as np

from convex_heads import ConvexHeadClassifier
from tasks.config import ExtractConfig
from tasks.console import make_reporter
from tasks.extraction import extract_features

given = sys.argv[1:]
data = given[0] if given else "digits"
backbone = given[1] if len(given) > 1 else "timm:mobilenetv3_large_100.ra_in1k"
train_rows, test_rows = (int(n) for n in (given[2:4] or (1000, 300)))

# The same call again finds the store complete, or goes on where it was stopped.
found = extract_features(
    ExtractConfig(data=data, backbone=backbone, train_rows=train_rows, test_rows=test_rows),
    make_reporter(),
)
print(
    f"{found.extraction.rows} rows, {found.extraction.dim} features: {found.extraction.store.path}"
)

train, validation, test = (found.rows(split) for split in ("train", "validation", "test"))
head = ConvexHeadClassifier(random_state=0).fit(
    train.features, train.labels, X_val=validation.features, y_val=validation.labels
)
best = head.classes_[np.argsort(-head.predict_proba(test.features), axis=1)[:, :5]]
right = best == test.labels[:, None]
print(f"test accuracy {right[:, 0].mean():.4f} (top-5: {right.any(axis=1).mean():.4f})")
print(f"relative gap {head.certificate_.relative_gap:.1e}, {head.certificate_.active_gates} gates")
