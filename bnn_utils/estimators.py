"""Bayesian networks with scikit-learn's interface: arrays or frames in, ``fit``, ``predict``, pipelines and searches.

What they sample is an ordinary posterior, `posterior_`, with an ordinary chain, `chain_`: whatever this package does
with these can be done with them. It needs scikit-learn 1.6 or newer, ``pip install scikit-learn``.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from bnn_utils.chain import Chain
from bnn_utils.data import Data
from bnn_utils.kernels.base import Kernel
from bnn_utils.layers import LogScale, Standardise
from bnn_utils.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from bnn_utils.posterior import Posterior
from bnn_utils.predict import predictive_mean
from bnn_utils.priors import FanInPrior, Prior
from bnn_utils.sampling import sample

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "silu": nn.SiLU}
WEIGHT_SCALE, BIAS_SCALE = 2.0, 1.0  # of the prior where none is given


class _BayesianNetwork(BaseEstimator):
    """What both have in common: layers, a posterior, a chain."""

    chain_: Chain
    posterior_: Posterior

    def __init__(
        self,
        hidden: tuple[int, ...] = (20,),
        activation: Literal["tanh", "relu", "silu"] = "tanh",
        prior: Prior | None = None,
        kernel: Kernel | None = None,
        num_samples: int = 1000,
        num_chains: int = 8,
        warmup: int = 1000,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.prior = prior
        self.kernel = kernel
        self.num_samples = num_samples
        self.num_chains = num_chains
        self.warmup = warmup
        self.random_state = random_state

    def _fit(self, x: np.ndarray, y: Tensor, outputs: int, likelihood: Likelihood, *last: nn.Module) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")
        inputs = torch.from_numpy(x.copy())
        widths = [x.shape[1], *self.hidden]
        layers: list[nn.Module] = [Standardise(inputs)]
        for below, above in pairwise(widths):
            layers += [_linear(below, above), ACTIVATIONS[self.activation]()]
        net = nn.Sequential(*layers, _linear(widths[-1], outputs), *last).double()
        prior = FanInPrior(WEIGHT_SCALE, BIAS_SCALE) if self.prior is None else self.prior
        self.posterior_ = Posterior(net, Data(inputs, y), prior, likelihood)
        self.chain_ = sample(
            self.posterior_,
            self.kernel,
            self.num_samples,
            self.num_chains,
            warmup=self.warmup,
            seed=int(check_random_state(self.random_state).randint(2**31)),
            progress=False,
        )
        for said in self.chain_.warnings:
            warnings.warn(said, ConvergenceWarning, stacklevel=3)

    def _inputs(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        return torch.from_numpy(validate_data(self, X, dtype=np.float64, reset=False).copy())


def _linear(below: int, above: int) -> nn.Linear:
    """A layer of zeros: torch's own values, for which nobody asks, come from a generator that all programs share."""
    layer = nn.utils.skip_init(nn.Linear, below, above)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class BayesianRegressor(RegressorMixin, _BayesianNetwork):
    """Regression by a network whose posterior is sampled, its noise included.

    Inputs and targets are standardised inside; everything that comes out is in the data's units.

    Args:
        hidden: units of each hidden layer; without any, ``()``, it is a linear regression.
        activation: "tanh", "relu" or "silu".
        prior: of all parameters, for standardised numbers; ``FanInPrior(2, 1)`` without it.
        kernel: such as ``NUTS()``; without it, that which was best for its kind and size (`bnn_utils.choice`).
        num_samples, num_chains, warmup: as for `bnn_utils.sample`.
        random_state: of starts and draws; a number gives the same fit again.

    Attributes:
        posterior_: the `Posterior`.
        chain_: the `Chain`, with `chain_.warnings`, which are given as ConvergenceWarning too.

    Examples:
        >>> import numpy as np
        >>> from bnn_utils.estimators import BayesianRegressor
        >>> x = np.linspace(-3, 3, 40)[:, None]
        >>> y = 5 + 2 * x[:, 0] + np.random.default_rng(0).normal(scale=0.1, size=40)
        >>> model = BayesianRegressor(hidden=(), random_state=0).fit(x, y)
        >>> mean, std = model.predict([[1.0]], return_std=True)
        >>> print(mean.round(1), std.round(1))
        [7.] [0.1]
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> BayesianRegressor:
        """Sample the posterior: X ``(N, features)``, y ``(N,)``."""
        x, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        targets = torch.from_numpy(column_or_1d(y, dtype=np.float64, warn=True).copy())
        self._fit(x, targets, 1, Gaussian(units=Standardise(targets)), LogScale())
        return self

    def predict(self, X: ArrayLike, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Mean of the predictive distribution, ``(M,)``; if asked for, also its standard deviation, noise included."""
        x, draws = self._inputs(X), self.chain_.draws
        means = self.posterior_.predict(draws, x)
        mean = predictive_mean(means, of_classes=False)
        if not return_std:
            return mean.numpy()
        # The law of total variance: the noise's mean variance, and the variance of the mean.
        noise = self.noise_.reshape(-1) ** 2
        return mean.numpy(), (noise.mean() + means.flatten(0, 1).var(0, correction=0).numpy()) ** 0.5

    @property
    def noise_(self) -> np.ndarray:
        """Standard deviation of the noise in each draw, ``(chains, draws)``, in the targets' units."""
        log_scale, likelihood = self.posterior_.parameters(self.chain_.draws)[..., -1], self.posterior_.likelihood
        assert isinstance(likelihood, Gaussian)  # with units, see `fit`
        assert likelihood.units is not None
        return (log_scale.exp() * likelihood.units.sd).numpy()

    def sample_y(
        self,
        X: ArrayLike,
        n_samples: int = 1,
        random_state: int | np.random.RandomState | None = 0,
    ) -> np.ndarray:
        """Targets that may be seen, noise included: draws from the predictive distribution, ``(M, n_samples)``."""
        x, rng = self._inputs(X), check_random_state(random_state)
        draws = self.chain_.draws.flatten(0, 1)
        some = draws[torch.from_numpy(rng.randint(len(draws), size=n_samples))]
        return self.posterior_.predictive_draws(some, x, seed=int(rng.randint(2**31))).T.numpy()


class BayesianClassifier(ClassifierMixin, _BayesianNetwork):
    """Classification by a network whose posterior is sampled; arguments and attributes as `BayesianRegressor`.

    Attributes:
        classes_: labels, in the order of the probabilities.

    Examples:
        >>> import numpy as np
        >>> from bnn_utils.estimators import BayesianClassifier
        >>> x = np.linspace(-3, 3, 40)[:, None]
        >>> labels = np.where(x[:, 0] > 0, "right", "left")
        >>> model = BayesianClassifier(hidden=(), random_state=0).fit(x, labels)
        >>> model.predict([[-2.0], [2.0]])
        array(['left', 'right'], dtype='<U5')
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> BayesianClassifier:
        """Sample the posterior: X ``(N, features)``, y ``(N,)``, of labels of any kind, of two classes or more."""
        x, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class alone, {self.classes_[0]}: there is nothing to tell apart")
        is_binary = len(self.classes_) == 2
        likelihood = Bernoulli() if is_binary else Categorical()
        self._fit(x, torch.from_numpy(numbers), 1 if is_binary else len(self.classes_), likelihood)
        return self

    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Probability of each class, averaged over draws, ``(M, classes)``."""
        x, is_binary = self._inputs(X), len(self.classes_) == 2
        p = predictive_mean(self.posterior_.predict(self.chain_.draws, x), of_classes=not is_binary).numpy()
        return np.stack([1 - p, p], axis=1) if is_binary else p

    def predict(self, X: ArrayLike) -> np.ndarray:
        """The class that is most probable, ``(M,)``."""
        p = self.predict_proba(X)
        return self.classes_[p.argmax(1)]
