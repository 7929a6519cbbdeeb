"""The scikit-learn contract: every check that the library has for estimators."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from convex_heads import ConvexHeadClassifier, ConvexHeadRegressor


@pytest.fixture
def array_api(monkeypatch):
    # Without this variable the check of other array libraries skips itself.
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")


@parametrize_with_checks([ConvexHeadClassifier()])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_contract(estimator, check, array_api):
    check(estimator)


@pytest.mark.slow
@parametrize_with_checks([ConvexHeadRegressor()])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_contract_of_the_regressor(estimator, check, array_api):
    check(estimator)
