# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9. Your own network, your own data
#
# You have a module and a data set. How much of what you have read carries over? All of it, in
# the same few lines: say what the outputs mean (a likelihood), what you believe about the
# weights (a prior), and draw. Whether it pays is another question, and this notebook asks it
# four times, with the answers open: of numbers, of wines, of handwritten digits, and of
# digits again with all but the last layer frozen.
#
# Each time, Hamiltonian Monte Carlo stands beside what it has to beat: the best single
# network, eight of those, and an approximation that costs next to nothing. It does not always
# win.
#
# You will see
# - that a model takes four lines, and which of them are about you,
# - whether chains of a network with thousands of weights agree,
# - how predictions are scored: on held-out data, three times over,
# - what each method says about things that it has never seen.
#
# Words in bold are in the [glossary](glossary.md).

# %%
import copy
from functools import cache, partial
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits, load_wine
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn.utils import vector_to_parameters
from torch.optim.lr_scheduler import CosineAnnealingLR

from bnn_utils import Categorical, ChEES, Data, FanInPrior, Gaussian, LogScale, Posterior
from bnn_utils import plots, sample
from bnn_utils.diagnostics import convergence
from bnn_utils.predict import calibration_error, log_score, predictive_mean
from bnn_utils.predict import predictive_quantiles

torch.set_num_threads(1)  # matrices as small as these gain nothing from a second core

# %% [markdown]
# ## A model in four lines
# Numbers first: a curve with noise, and no data in the middle. (The data are made up, so that
# the truth is known where there are none.)


# %%
def curve(x):
    return torch.sin(3 * x) + x / 2


def noisy_points(num, seed, low=0.6, high=1.8):
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(num, 1, generator=generator)
    x = torch.where(torch.rand(num, 1, generator=generator) < 0.5, x, -x)
    return Data(x, curve(x[:, 0]) + 0.2 * torch.randn(num, generator=generator))


data = noisy_points(60, seed=0)
net = nn.Sequential(nn.Linear(1, 30), nn.SiLU(), nn.Linear(30, 1), LogScale())
prior, likelihood = FanInPrior(weight=2.0, bias=1.0), Gaussian()
posterior = Posterior(net, data, prior, likelihood)
print(posterior)

# %% [markdown]
# Four lines, and each is a question to you. *What can the outputs compute?* `net`: any module
# does. *What do outputs mean?* `Gaussian()` reads a mean and the logarithm of the noise's
# scale. The layer `LogScale` adds that as one more weight, so the noise is inferred with the
# rest. (Counts? Pass a function from outputs to a distribution of torch's.) *What do you
# believe?* `FanInPrior` divides the **prior**'s variance by the number of inputs of a unit, so
# that the same belief serves small layers and large ones. *What did you see?* `Data`.
#
# ## Would you have believed these data?
# Before anything is drawn from the **posterior**: let networks from the prior make up data
# sets, and see where a summary of the real one lies among theirs. For numbers take the standard
# deviation of the targets. A share near 0 or 1 would mean that the prior rules out what came.


# %%
def prior_rank(posterior, summary, num=1000):
    """Share of data sets made up by the prior whose summary is below that of the data."""
    generator = torch.Generator().manual_seed(0)
    made_up = posterior.simulate(posterior.sample_prior(num, generator), generator)
    actual = summary(posterior.data.y)
    return np.mean([(summary(y) < actual).item() for y in made_up])


rank = prior_rank(posterior, torch.std)
assert 0.01 < rank < 0.2
print("the prior expects wider swings than it got, but these are among what it expects")

# %% [markdown]
# ## The competitors
# A method is a function: it gets a posterior and inputs, and gives the network's outputs
# there, a row for each network that it believes in. That is all that the scores will see.
#
# - **MAP**: one network, the highest of eight climbs ([notebook 2](02_model.ipynb)).
# - A **deep ensemble**: all eight.
# - HMC: eight chains from draws of the prior. `ChEES` learns the step size, the mass and how
#   long to roll, so nothing is set by hand.


# %%
@cache
def climbed(posterior):
    """Eight networks, each climbed to from its own draw of the prior, the highest first."""
    theta = posterior.sample_prior(8, torch.Generator().manual_seed(0))
    adam = torch.optim.Adam([theta], lr=0.05)
    slower = CosineAnnealingLR(adam, 500)
    for _ in range(500):
        theta.grad = -posterior.log_prob_and_grad(theta)[1]
        adam.step()
        slower.step()
    return theta[posterior.log_prob(theta).argsort(descending=True)]


def maximum(posterior, x):
    return posterior.outputs(climbed(posterior)[:1], x)


def deep_ensemble(posterior, x):
    return posterior.outputs(climbed(posterior), x)


def hmc(posterior, x, num_samples=500):
    chain = sample(posterior, ChEES(), num_samples, num_chains=8, warmup=200, seed=1)
    return torch.stack([posterior.outputs(draws, x) for draws in chain.draws])


# %% [markdown]
# Two more come from other packages, and are left out where those are not installed
# (`pip install -e '.[peers]'`).
#
# - A **Laplace approximation** (laplace-torch): a normal distribution around the MAP, as wide as
#   the curvature there says, and the network taken as linear in its weights.
# - Microcanonical Langevin ensembles (sklearn-contrib-bde): eight networks trained in the usual
#   way, then a short chain from each. Prior and network are ours; for numbers it lets the noise
#   depend on the input, so there its model is another one.


# %%
def network(posterior):
    """The module with the MAP's weights in it."""
    net = copy.deepcopy(posterior.flat.module)
    vector_to_parameters(climbed(posterior)[0], net.parameters())
    return net


def laplace(posterior, x):
    from laplace import Laplace

    net, is_number = network(posterior), isinstance(posterior.likelihood, Gaussian)
    mean = net[:-1] if is_number else net  # it takes the noise as given: that of the MAP
    noise = {"sigma_noise": net[-1].log_scale.exp().item()} if is_number else {}
    size = sum(p.numel() for p in mean.parameters())
    y = posterior.data.y[:, None] if is_number else posterior.data.y
    fitted = Laplace(
        mean, "regression" if is_number else "classification", "all", "full", **noise,
        prior_precision=posterior.prior_distribution.precision[:size],
    )  # fmt: skip
    points = torch.utils.data.TensorDataset(posterior.data.x, y)
    fitted.fit(torch.utils.data.DataLoader(points, batch_size=100))
    generator = torch.Generator().manual_seed(0)
    outputs = fitted.functional_samples(x, "glm", n_samples=500, generator=generator).detach()
    return net[-1](outputs).detach() if is_number else outputs


def langevin(posterior, x):
    import jax
    from bde import BdeClassifier, BdeRegressor
    from bde.sampler.prior import Prior

    weight, bias = posterior.prior.weight, posterior.prior.bias
    normal = jax.scipy.stats.norm.logpdf

    def log_prior(layers):
        return sum(
            normal(w, scale=weight / len(w) ** 0.5).sum() + normal(b, scale=bias).sum()
            for w, b in layers
        )

    is_number = isinstance(posterior.likelihood, Gaussian)
    model = (BdeRegressor if is_number else BdeClassifier)(
        n_members=8, hidden_layers=[posterior.flat.module[0].out_features], activation="silu",
        epochs=300, lr=0.01, validation_split=None, warmup_steps=500, n_samples=200,
        n_thinning=4, prior_family=Prior(None, log_prior, "fan-in"),
    )  # fmt: skip
    model.fit(posterior.data.x.numpy(), posterior.data.y.numpy())
    outputs = torch.from_numpy(np.array(model.predict(x.numpy(), raw=True)))
    if is_number:
        mean, raw = outputs.chunk(2, dim=-1)
        outputs = torch.cat([mean, nn.functional.softplus(raw).log()], dim=-1)
    return outputs


# %% tags=["nbval-ignore-output"]
methods = {"MAP": maximum, "deep ensemble": deep_ensemble, "HMC": hmc}
peers = {"Laplace": ("laplace", laplace), "Langevin ensemble": ("bde", langevin)}
for name, (package, method) in peers.items():
    if find_spec(package):
        methods[name] = method
    else:
        print(f"{name} is left out: the package {package} is not installed")
print("compared:", ", ".join(methods))

# %% [markdown]
# ## Numbers: what happens in the gap?
# Three made-up data sets, so that luck shows. Each method predicts 300 new points where the
# data are, and 200 in the gap.


# %%
def run(cases, methods, unseen):
    """For each (posterior, held-out data): method -> outputs there and at the unseen."""
    return [
        {name: method(posterior, torch.cat([held_out.x, unseen.x])).split(
            [len(held_out), len(unseen)], dim=-2) for name, method in methods.items()}
        for posterior, held_out in cases
    ]  # fmt: skip


held_out, gap = noisy_points(300, seed=10), noisy_points(200, seed=11, low=0.0, high=0.6)
numbers = [(Posterior(net, noisy_points(60, seed), prior, likelihood), held_out)
           for seed in range(3)]  # fmt: skip
outputs = run(numbers, methods, gap)


# %% [markdown]
# First the question that comes before all others: did the chains agree, in **function space**?
# The quantity judged is what the scores are made of, the log probability of each held-out
# target.


# %%
def verdicts(cases, outputs):
    return [
        convergence(posterior.likelihood.log_probs(near["HMC"][0], held_out.y), held_out.x)
        for (posterior, held_out), near in zip(cases, outputs, strict=True)
    ]


for verdict in verdicts(numbers, outputs):
    print(verdict)

# %%
assert max(verdict.r_hat.max() for verdict in verdicts(numbers, outputs)) < 1.02
print("verdict: with 92 weights, the chains agree about every held-out point")

# %% [markdown]
# Now look. Shaded is where nine in ten new targets should fall, dashed is the truth. Guess
# before you do: which bands will be too narrow in the middle?


# %%
def band(outputs):
    """Where nine in ten new targets should fall: 5 %, 50 % and 95 % quantiles, (3, M)."""
    mean, log_scale = outputs.unbind(-1)
    again = (300 // len(mean), *mean.shape)  # several targets from each of few networks
    noise = torch.randn(max(again[0], 1), *mean.shape, generator=torch.Generator().manual_seed(0))
    return predictive_quantiles(mean + log_scale.exp() * noise, [0.05, 0.5, 0.95])


x = torch.linspace(-2.5, 2.5, 101)[:, None]
posterior, _ = numbers[0]
believed = posterior.sample_prior(1000, torch.Generator().manual_seed(0))
seen = {"the prior, before any data": posterior.outputs(believed, x)}
seen |= {name: method(posterior, x) for name, method in methods.items()}
plots.predictive_bands(
    {name: band(outputs) for name, outputs in seen.items()},
    x,
    posterior.data,
    truth=curve(x[:, 0]),
    title="One network is sure of the gap; HMC leaves room there",
)

# %% [markdown]
# And scored. The *log score* is the mean log probability density of what came; higher is
# better, and it punishes whoever is sure and wrong. *Covered* is the share of targets inside
# the nine-in-ten bands, so 0.9 is right. Both in the gap, too.


# %%
def scores_of_numbers(likelihood, near, y, far, y_far):
    """Log score and coverage of nine-in-ten intervals, at held-out points and in the gap."""

    def covered(outputs, y):
        below = predictive_mean(likelihood.distribution(outputs).cdf(y))
        return ((below > 0.05) & (below < 0.95)).float().mean().item()

    return {
        "log score": log_score(likelihood.log_probs(near, y)).mean().item(),
        "covered": covered(near, y),
        "log score, gap": log_score(likelihood.log_probs(far, y_far)).mean().item(),
        "covered, gap": covered(far, y_far),
    }


def scored(cases, outputs, unseen, scores):
    """A row for each split and method."""
    return pd.DataFrame(
        {"method": name, "split": split, **scores(
            posterior.likelihood, near, held_out.y, far, unseen.y)}
        for split, ((posterior, held_out), by_method) in enumerate(zip(cases, outputs, strict=True))
        for name, (near, far) in by_method.items()
    )  # fmt: skip


def summary(table):
    """Mean over splits, and in brackets the standard deviation between them."""
    by_method = table.drop(columns="split").groupby("method", sort=False)
    return by_method.agg(lambda values: f"{values.mean():.3f} ({values.std():.3f})")


table = scored(numbers, outputs, gap, scores_of_numbers)
plots.scores(
    table,
    ["log score", "covered", "log score, gap", "covered, gap"],
    title="Dots are data sets: HMC's log score is best or close to it in each",
)

# %% tags=["nbval-ignore-output"]
summary(table)


# %% [markdown]
# Is that luck? Methods are compared on the same data, so look at differences, split by split.


# %%
def gain(table, column, over, of="HMC"):
    """By how much a method's score is above another's, one number per split."""
    by_split = table.pivot(index="split", columns="method", values=column)
    return by_split[of] - by_split[over]


assert all(gain(table, "log score", over).min() > 0 for over in ("MAP", "deep ensemble"))
assert gain(table, "covered, gap", "MAP").mean() > 0
print("verdict: HMC beats one network and eight of them, in each of the three data sets")

# %% [markdown]
# ## Wine: three classes, thirteen inputs
# scikit-learn ships the chemistry of 178 wines from three growers. Only three lines change: the
# data, the network's shape, and `Categorical()`, which reads one **logit** per class. 80 wines
# to learn from, 98 held out, three ways to split them.
#
# And away from the data: 200 wines that are none, normal noise three times as wide as wines
# are. The prior check looks at the share of the most frequent class.


# %%
def commonest(labels):
    return labels.bincount().max() / len(labels)


def splits(x, y, net, **sizes):
    """Three ways to divide the points: (posterior of one part, the other part)."""
    cases = []
    for seed in range(3):
        train, test = train_test_split(range(len(x)), stratify=y, random_state=seed, **sizes)
        learned, held_out = (Data(x[part], y[part]) for part in (train, test))
        cases.append((Posterior(net, learned, prior, Categorical()), held_out))
    return cases


raw = load_wine()
x = torch.from_numpy((raw.data - raw.data.mean(0)) / raw.data.std(0)).float()
y = torch.from_numpy(raw.target)
net = nn.Sequential(nn.Linear(13, 20), nn.SiLU(), nn.Linear(20, 3))
wines = splits(x, y, net, train_size=80)
noise = 3 * torch.randn(200, 13, generator=torch.Generator().manual_seed(0))
no_wine = Data(noise, torch.zeros(200))
print(wines[0][0])
assert 0.01 < prior_rank(wines[0][0], commonest) < 0.99
print("the prior finds nothing strange about the classes' shares")

# %%
outputs = run(wines, methods, no_wine)
for verdict in verdicts(wines, outputs):
    print(verdict)

# %%
assert max(verdict.r_hat.max() for verdict in verdicts(wines, outputs)) < 1.02
print("verdict: with 343 weights, the chains agree about every held-out wine")

# %% [markdown]
# Four scores. The log score again; *accuracy*, the share of right first choices; the
# *calibration error*, how far confidence is from accuracy on average, 0 where a method is right
# as often as it says; and *strangers told*: take a held-out wine and a stranger, how often is
# the method less sure of the stranger? One half is a coin flip.


# %%
def scores_of_classes(likelihood, near, y, far, _):
    """Log score, accuracy, calibration error with its bootstrap error, strangers told."""
    p, p_far = (predictive_mean(likelihood.mean(part), of_classes=True) for part in (near, far))
    doubt = 1 - torch.cat([p, p_far]).max(-1).values
    calibration = calibration_error(p, y)
    return {
        "log score": log_score(likelihood.log_probs(near, y)).mean().item(),
        "accuracy": (p.argmax(-1) == y).float().mean().item(),
        "calibration error": calibration.value,
        "its error": calibration.error,
        "strangers told": roc_auc_score([0] * len(p) + [1] * len(p_far), doubt),
    }


CLASS_SCORES = ["log score", "accuracy", "calibration error", "strangers told"]
table = scored(wines, outputs, no_wine, scores_of_classes)
plots.scores(table, CLASS_SCORES, title="Wines are easy: FIXME")

# %% tags=["nbval-ignore-output"]
summary(table)

# %% [markdown]
# ## Digits: thousands of weights
# 8 by 8 pixels, ten classes. The network has 2,969 weights, and HMC draws all of them. To keep
# this notebook short it learns from 500 digits, a third of what there is, and 500 are held
# out.
#
# The strangers are the nines: no method ever sees one, and no output stands for them. What
# will a network say that has to choose?

# %%
raw = load_digits()
pixels = torch.from_numpy((raw.data - raw.data.mean()) / raw.data.std()).float()
labels = torch.from_numpy(raw.target)
known = labels < 9
nines = Data(pixels[~known], labels[~known])
net = nn.Sequential(nn.Linear(64, 40), nn.SiLU(), nn.Linear(40, 9))
digits = splits(pixels[known], labels[known], net, train_size=500, test_size=500)
print(digits[0][0])
assert 0.01 < prior_rank(digits[0][0], commonest) < 0.99

# %% [markdown]
# ## Only the last layer
# Thousands of weights too many? Then train a network as ever, freeze all but its last layer,
# and be Bayesian about that. Two lines:

# %%
posterior, _ = digits[0]
frozen = network(posterior)
frozen.requires_grad_(False)
frozen[-1].requires_grad_(True)
last = Posterior(frozen, posterior.data, prior, Categorical())
print(f"{last.dim} of {posterior.dim} parameters are left in theta")

# %% [markdown]
# The frozen part computes the same thing at every step. Do it once, and the last layer is a
# network of its own whose inputs are features. The **log joint** is the same, number for
# number, and draws are several times as fast. That makes one more method:


# %%
def on_features(posterior):
    """The last layer as a network of its own, and the frozen part that feeds it."""
    *body, head = network(posterior).requires_grad_(False)
    features = nn.Sequential(*body)
    head.requires_grad_(True)
    data = Data(features(posterior.data.x), posterior.data.y)
    return Posterior(head, data, posterior.prior, posterior.likelihood), features


def last_layer(posterior, x):
    head, features = on_features(posterior)
    return hmc(head, features(x))


head, _ = on_features(posterior)
theta = last.sample_prior(5, torch.Generator().manual_seed(0))
assert torch.allclose(head.log_prob(theta), last.log_prob(theta), rtol=1e-5)
print(f"the same log joint: gradient {last.gradient} with the body, {head.gradient} without")

# %% [markdown]
# Ready? Accuracy, calibration, nines: who wins what? Write your guesses down.

# %%
methods |= {"HMC, last layer": last_layer, "HMC": partial(hmc, num_samples=200)}
outputs = run(digits, methods, nines)
for verdict in verdicts(digits, outputs):
    print(verdict)

# %%
table = scored(digits, outputs, nines, scores_of_classes)
plots.scores(table, CLASS_SCORES, title="Digits: FIXME")

# %% tags=["nbval-ignore-output"]
summary(table)
