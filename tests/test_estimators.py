"""scikit-learn's interface, by scikit-learn's own checks, and its numbers beside those of the posterior within."""

import doctest
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.utils.estimator_checks import parametrize_with_checks

from bnn_utils import HMC, NUTS, NormalPrior, estimators
from bnn_utils.estimators import BayesianClassifier, BayesianRegressor

# Short runs, of which warnings say so.
FEW = {"hidden": (4,), "kernel": HMC(0.1, 5), "num_samples": 100, "num_chains": 2, "warmup": 100}
X = np.random.default_rng(0).normal(size=(60, 3)) * [1, 100, 0.01] + [0, 5000, 0]
Y = 1000 + 50 * X[:, 0] + 0.2 * (X[:, 1] - 5000) + 5 * np.random.default_rng(1).normal(size=60)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([BayesianRegressor(**FEW), BayesianClassifier(**FEW)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def linear():
    return BayesianRegressor((), kernel=NUTS(), num_samples=2000, num_chains=4, warmup=300, random_state=0).fit(X, Y)


@pytest.mark.statistical
def test_a_linear_regression_beside_scikit_learns(linear):
    """Whose weights and noise are inferred too: the same means and deviations to some per cent of a deviation."""
    other = BayesianRidge().fit((X - X.mean(0)) / X.std(0), Y)
    mean, std = linear.predict(X, return_std=True)
    expected, deviation = other.predict((X - X.mean(0)) / X.std(0), return_std=True)
    assert np.abs(mean - expected).max() < 0.3 * deviation.min()
    assert np.abs(std / deviation - 1).max() < 0.15
    assert linear.score(X, Y) > 0.9


@pytest.mark.statistical
def test_deviations_are_those_of_predictive_draws(linear):
    """The law of total variance against draws; so are those of the noise. False-alarm rate below 1e-4."""
    mean, std = linear.predict(X, return_std=True)
    drawn = linear.sample_y(X, 20_000, random_state=1)
    assert drawn.shape == (60, 20_000)
    z = (drawn.mean(1) - mean) / (std / math.sqrt(20_000))
    assert np.abs(z).max() < 6
    assert np.abs(drawn.std(1) / std - 1).max() < 6 / math.sqrt(2 * 20_000)
    assert linear.noise_.shape == (4, 2000)
    assert np.array_equal(drawn, linear.sample_y(X, 20_000, random_state=1))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_frames_pipelines_and_cross_validation():
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    model = BayesianRegressor(**(FEW | {"hidden": ()}), random_state=0)
    assert model.fit(frame, pd.Series(Y)).feature_names_in_.tolist() == ["a", "b", "c"]
    pipeline = make_pipeline(PolynomialFeatures(2, include_bias=False), clone(model))
    assert cross_val_score(pipeline, X, Y, cv=2).min() > 0.5


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_two_numbers_that_add_up_to_one_are_no_classes():
    """Of which a mean over draws asks, where nobody says what they are."""
    x = np.linspace(-1, 1, 40)[:, None]
    model = BayesianRegressor(**FEW, random_state=0).fit(x, 0.5 + 0.1 * x[:, 0])
    model.chain_ = replace(model.chain_, draws=torch.zeros_like(model.chain_.draws))
    np.testing.assert_allclose(model.predict([[-1.0], [1.0]]), 0.5)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_classes_of_any_name():
    labels = np.array(["low", "middle", "high"])[np.digitize(X[:, 0], [-0.5, 0.5])]
    model = BayesianClassifier(**(FEW | {"num_samples": 200}), random_state=0).fit(X, labels)
    assert model.classes_.tolist() == ["high", "low", "middle"]
    p = model.predict_proba(X)
    assert p.shape == (60, 3)
    np.testing.assert_allclose(p.sum(1), 1)
    assert model.score(X, labels) > 0.8
    expected = model.posterior_.predict(model.chain_.draws, torch.from_numpy(X)).mean((0, 1))
    np.testing.assert_allclose(p, expected)


def test_the_same_state_gives_the_same_fit():
    model = BayesianRegressor(**(FEW | {"prior": NormalPrior(1.0), "activation": "silu"}), random_state=3)
    before = torch.get_rng_state()
    with pytest.warns(ConvergenceWarning):
        one, two = clone(model).fit(X, Y), clone(model).fit(X, Y)
    assert torch.equal(one.chain_.draws, two.chain_.draws)
    assert torch.equal(torch.get_rng_state(), before), "the generator that all share is left alone"
    assert repr(one.posterior_.prior) == "NormalPrior(precision=1.0)"


def test_examples():
    """In the docstrings."""
    found = doctest.testmod(estimators)
    assert found.attempted > 8
    assert found.failed == 0


def test_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="y holds one class alone, a"):
        BayesianClassifier().fit(X, ["a"] * 60)
    with pytest.raises(ValueError, match="activation must be one of tanh, relu, silu, got 'cubic'"):
        BayesianRegressor(activation="cubic").fit(X, Y)
