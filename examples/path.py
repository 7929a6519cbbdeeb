"""The regularisation path of a head on your own arrays: loss, gap and size at every beta.

Run: python examples/path.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from convex_heads import ConvexHeadClassifier

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=0)

head = ConvexHeadClassifier(beta=np.geomspace(0.3, 0.003, 5), penalty="group")
head = head.fit(X_train, y_train)

print(" beta/beta_max  validation loss  accuracy  relative gap  active gates  data passes")
for point in head.path_:
    print(
        f"{point.fraction:14.3f}  {point.loss:15.4f}  {point.score:8.4f}"
        f"  {point.relative_gap:12.1e}  {point.active_gates:12d}  {point.passes:11.1f}"
    )
certificate = head.certificate_
print(f"chosen: {head.beta_:.3f}, test accuracy {head.score(X_test, y_test):.4f}")
print(f"proven: objective {certificate.primal:.5f}, no head on these gates below ", end="")
print(f"{certificate.dual:.5f} (relative gap {certificate.relative_gap:.1e})")
print(
    f"pattern violation {certificate.pattern_violation:.2f}: above 1, more gates would fit better"
)
