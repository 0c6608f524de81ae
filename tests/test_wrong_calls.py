# ruff: noqa: E501 (tables, a call a line)
"""Wrong calls of the public functions: each ends in an error that says in plain words what was wrong."""

import io
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import distributions, nn

import bnn_utils
from bnn_utils import animate, diagnostics, plots, predict, sbc, symmetry, widgets

# A call as it would be typed -> the words that its error must hold, a regular expression. A wrong type is a TypeError;
# lines of VALUES are of the right type and have a wrong value: a ValueError.
TYPES = r"""
HMC("0.1", 3)                                     | step_size must be a number, got '0.1'
HMC(None, 3)                                      | step_size must be a number, got None
Hamiltorch(0.1, None)                             | num_steps must be a whole number, got None: hamiltorch finds none
HMC(True, 3)                                      | step_size must be a number, got True
HMC(np.True_, 3)                                  | step_size must be a number, got np.True_
HMC(0.1j, 3)                                      | step_size must be a number, got 0.1j
HMC([0.1], 3)                                     | step_size must be a number, got an object of type list
HMC(torch.tensor([0.1]), 3)                       | step_size must be a number, got a tensor of shape \(1,\) and torch.float32
HMC(torch.tensor(True), 3)                        | step_size must be a number, got a tensor of shape \(\) and torch.bool
HMC(0.1, "3")                                     | num_steps must be a whole number of at least 1, got '3'
HMC(0.1, True)                                    | num_steps must be a whole number of at least 1, got True
HMC(0.1, [3])                                     | num_steps must be a whole number of at least 1, got an object of type list
HMC(0.1, np.array([3]))                           | num_steps must be a whole number of at least 1, got an array of shape \(1,\)
HMC(0.1, 3, inv_mass="diagonal")                  | inv_mass must be a tensor or an array of numbers, got 'diagonal'
HMC(0.1, 3, inv_mass=[[1.0], [1.0, 2.0]])         | inv_mass must be a tensor or an array of numbers
HMC(0.1, 3, jitter="0.2")                         | jitter must be a fraction, got '0.2'
HMC(0.1, 3, jitter=True)                          | jitter must be a fraction, got True
ChEES("0.1")                                      | step_size must be a number, got '0.1'
ChEES(True)                                       | step_size must be a number, got True
ChEES(0.1, None)                                  | trajectory_length must be a number, got None
ChEES(0.1, False)                                 | trajectory_length must be a number, got False
ChEES(inv_mass="dense")                           | inv_mass must be a tensor or an array of numbers, got 'dense'
NUTS("0.1")                                       | step_size must be a number, got '0.1'
NUTS(0.1, "10")                                   | max_tree_depth must be a whole number of at least 1, got '10'
NUTS(target_acceptance="0.8")                     | target_acceptance must be a probability, got '0.8'
Symmetric(0.1)                                    | kernel must be HMC, NUTS, .*; got 0.1
Symmetric(hmc, "2")                               | every must be a whole number of at least 1, got '2'
MAMS("0.1")                                       | step_size must be a number, got '0.1'
MAMS(0.1, None)                                   | trajectory_length must be a number, got None
MAMS(inv_mass="diagonal")                         | inv_mass must be a tensor or an array of numbers, got 'diagonal'
MCLMC(True)                                       | step_size must be a number, got True
MCLMC(0.1, "1")                                   | decoherence_length must be a number, got '1'
MCLMC(inv_mass="diagonal")                        | inv_mass must be a tensor or an array of numbers, got 'diagonal'
MCLMC(energy_variance=None)                       | energy_variance must be a number, got None
SGLD("0.1", 5)                                    | step_size must be a number, got '0.1'
SGLD(0.1, "5")                                    | batch_size must be a whole number of at least 1, got '5'
SGLD(0.1, None)                                   | batch_size must be a whole number of at least 1, got None
SGLD(0.1, 5, cycle_length="5")                    | cycle_length must be a whole number of at least 1, got '5'
SGLD(0.1, 5, exploration="0.8")                   | exploration must be a fraction, got '0.8'
SGHMC(0.1, True)                                  | batch_size must be a whole number of at least 1, got True
SGHMC(0.1, 5, friction=None)                      | friction must be a fraction, got None
ReplicaExchange(0.1)                              | kernel must be an HMC kernel, .*HMC\(step_size.*, got 0.1
ReplicaExchange(HMC)                              | kernel must be an HMC kernel, .* got the class HMC itself
ReplicaExchange(ChEES())                          | kernel must be an HMC kernel, .* got an object of type ChEES
ReplicaExchange(None)                             | kernel must be an HMC kernel, .* got None
ReplicaExchange(hmc, "4")                         | num_temperatures must be a whole number of at least 2, got '4'
ReplicaExchange(hmc, True)                        | num_temperatures must be a whole number of at least 2, got True
ReplicaExchange(hmc, 2, inverse_temperatures="01") | inverse_temperatures must be a tensor or an array of numbers, got '01'
ReplicaExchange(hmc, 2, step_sizes="01")          | step_sizes must be a tensor or an array of numbers, got '01'
ReplicaExchange(hmc, 2, reference="prior")        | reference must be a tensor or an array of numbers, got 'prior'
fit_reference(None, np.ones(3))                   | posterior must be a Posterior, .* got None
Gaussian("0.1")                                   | scale must be a number, got '0.1'
Gaussian(True)                                    | scale must be a number, got True
Gaussian(torch.ones(2))                           | scale must be a number, got a tensor of shape \(2,\)
Gaussian([0.1])                                   | scale must be a number, got an object of type list
LogScale("1")                                     | num must be a whole number of at least 1, got '1'
LogScale(True)                                    | num must be a whole number of at least 1, got True
LogScale(None)                                    | num must be a whole number of at least 1, got None
NormalPrior("0.09")                               | precision must be a number, a vector or a mapping .*, got '0.09'
NormalPrior(None)                                 | precision must be a number, a vector or a mapping .*, got None
NormalPrior(True)                                 | precision must be a number, .*, got True
NormalPrior(1j)                                   | precision must be a number, .*, got 1j
NormalPrior([True, "a"])                          | precision must be a tensor or an array of numbers, .* values of type <U
NormalPrior({"*": "1"})                           | precision of '\*' must be a number, got '1'
NormalPrior({"*": None})                          | precision of '\*' must be a number, got None
NormalPrior({"*": True})                          | precision of '\*' must be a number, got True
NormalPrior({"*": torch.ones(2)})                 | precision of '\*' must be a number, got a tensor of shape \(2,\)
NormalPrior({3: 1.0})                             | a pattern of parameter names must be a str, such as '\*.weight', got 3
NormalPrior(distributions.Normal(0.0, 1.0))       | precision must be a number, .*, got an object of type Normal
FanInPrior("1")                                   | weight must be a number, got '1'
FanInPrior(True)                                  | weight must be a number, got True
FanInPrior(1.0, None)                             | bias must be a number, got None
FanInPrior(torch.ones(2))                         | weight must be a number, got a tensor of shape \(2,\)
ElementPrior(0.09)                                | must be a distribution, such as .*Laplace\(0.0, 1.0\), got 0.09
ElementPrior(None)                                | must be a distribution, .* got None
ElementPrior(distributions.Laplace)               | must be a distribution, .* got the class Laplace itself
ElementPrior(NormalPrior(1.0))                    | must be a distribution, .* got an object of type NormalPrior
ElementPrior({"*": 1.0})                          | must be a distribution, .* got 1.0
ElementPrior({3: distributions.Normal(0.0, 1.0)}) | a pattern of parameter names must be a str, such as '\*.weight', got 3
Data("x", y)                                      | x must be a tensor or an array of numbers, got 'x'
Data(x, None)                                     | y must be a tensor or an array of numbers, got None
Data(None, y)                                     | x must be a tensor or an array of numbers, got None
Data(x, {"y": y})                                 | y must be a tensor or an array of numbers, got an object of type dict
Data([[1.0, 2.0], [3.0]], [0, 1])                 | x must be a tensor or an array of numbers
Data(pd.DataFrame({"a": ["u", "v"]}), [0, 1])     | x must be a tensor or an array of numbers, .* values of type
Data(np.array([["1", "2"]]), [0])                 | x must be a tensor or an array of numbers, .* values of type <U1
Data(np.array([[None, 1.0]]), [0])                | x must be a tensor or an array of numbers, .* values of type object
Data(np.array(["2020-01-01"], "datetime64[D]"), [0]) | x must be a tensor or an array of numbers, .* values of type datetime64
Data(x, pd.Series(list("ab")))                    | y must be a tensor or an array of numbers, .* values of type
Data(data, y)                                     | x must be a tensor or an array of numbers, got an object of type Data
boxes("80")                                       | n must be a whole number of at least 4, got '80'
boxes(None)                                       | n must be a whole number of at least 4, got None
boxes(True)                                       | n must be a whole number of at least 4, got True
boxes(80, "1")                                    | seed must be a whole number of at least 0, got '1'
boxes(80, None)                                   | seed must be a whole number of at least 0, got None
boxes(80, torch.Generator())                      | seed must be a whole number of at least 0, got an object of type Generator
boxes(80, np.random.default_rng(0))               | seed must be a whole number of at least 0, got an object of type Generator
square_grid("25")                                 | num must be a whole number of at least 2, got '25'
square_grid(True)                                 | num must be a whole number of at least 2, got True
square_grid(25, "6")                              | limit must be a number, got '6'
square_grid(25, None)                             | limit must be a number, got None
square_grid(25, True)                             | limit must be a number, got True
square_grid(25, like=torch.float32)               | like must be a torch.Tensor, .* got
square_grid(25, like="cpu")                       | like must be a torch.Tensor, .* got 'cpu'
FlatModule("net")                                 | module must be a torch.nn.Module, got 'net'
FlatModule(None)                                  | module must be a torch.nn.Module, got None
FlatModule(nn.Linear)                             | module must be a torch.nn.Module, got the class Linear itself
FlatModule(posterior)                             | module must be a torch.nn.Module, got an object of type Posterior
flat.ravel([1.0])                                 | params must be a mapping from names to tensors, got an object of type list
flat.ravel(theta)                                 | params must be a mapping from names to tensors, got a tensor
flat.unravel([1.0])                               | theta must be a torch.Tensor, got an object of type list
flat.unravel(theta.numpy())                       | theta must be a torch.Tensor, got an array
flat(None, x)                                     | theta must be a torch.Tensor, got None
flat(0.0, x)                                      | theta must be a torch.Tensor, got 0.0
flat.check("theta")                               | theta must be a torch.Tensor, got 'theta'
Posterior("net", data, prior, Bernoulli())        | module must be a torch.nn.Module, got
Posterior(nn.Linear, data, prior, Bernoulli())    | module must be a torch.nn.Module, got
Posterior(flat, data, prior, Bernoulli())         | module must be a torch.nn.Module, got
Posterior(None, data, prior, Bernoulli())         | module must be a torch.nn.Module, got
Posterior(net, x, prior, Bernoulli())             | data must be a Data, as by Data\(x, y\), got a tensor
Posterior(net, (x, y), prior, Bernoulli())        | data must be a Data, as by Data\(x, y\), got an object of type tuple
Posterior(net, None, prior, Bernoulli())          | data must be a Data, as by Data\(x, y\), got None
Posterior(net, data, 0.09, Bernoulli())           | prior must be .*NormalPrior\(precision=0.09\), .* got 0.09
Posterior(net, data, None, Bernoulli())           | prior must be .*NormalPrior\(precision=0.09\), .* got None
Posterior(net, data, NormalPrior, Bernoulli())    | prior must be .* got the class NormalPrior itself
Posterior(net, data, distributions.Normal(0.0, 1.0), Bernoulli()) | prior must be .* ElementPrior\(.*\).* got an object of type Normal
Posterior(net, data, Bernoulli(), prior)          | prior must be .* got an object of type Bernoulli
Posterior(net, data, prior, "bernoulli")          | likelihood must be .*Bernoulli\(\).* got 'bernoulli'
Posterior(net, data, prior, None)                 | likelihood must be .* got None
Posterior(net, data, prior, Bernoulli)            | likelihood must be .* got the class Bernoulli itself
Posterior(net, data, prior, NormalPrior(1.0))     | likelihood must be .* got an object of type NormalPrior
Posterior(net, data, prior, distributions.Bernoulli(0.5)) | likelihood must be .* got an object of type Bernoulli
Posterior(net, data, prior, nn.BCEWithLogitsLoss()) | likelihood must be .* got an object of type BCEWithLogitsLoss
Posterior(net, data, prior, lambda outputs: outputs) | the likelihood's function must return a distribution .* got a tensor
Posterior(net, data, prior, lambda outputs: None) | the likelihood's function must return a distribution .* got None
posterior.log_prob([0.0] * 20)                    | theta must be a torch.Tensor, got an object of type list
posterior.log_prob(theta.numpy())                 | theta must be a torch.Tensor, got an array .*posterior.numpy\(\)
posterior.log_prob(None)                          | theta must be a torch.Tensor, got None
posterior.log_prior("theta")                      | theta must be a torch.Tensor, got 'theta'
posterior.log_likelihood(0)                       | theta must be a torch.Tensor, got 0
posterior.log_prob_and_grad(chain)                | theta must be a torch.Tensor, got an object of type Chain
posterior.outputs(None, x)                        | theta must be a torch.Tensor, got None
posterior.outputs(theta, x.numpy())               | x must be a torch.Tensor, got an array
posterior.outputs(theta, None)                    | x must be a torch.Tensor, got None
posterior.density("2")                            | num_lanes must be a whole number of at least 1, got '2'
flat.ravel({name: None for name in flat.shapes})  | params\['0.weight'\] must be a torch.Tensor, got None
data.to("float64")                                | data.to takes a dtype, such as torch.float32, .* got 'float64'
data.to([1])                                      | data.to takes a dtype, .* got an object of type list
Chain.from_draws(draws, posterior, stats={3: draws[..., 0]}) | the name of a statistic must be a str, got 3
sbc.chi_square("ranks", 3)                        | ranks must be a tensor or an array of numbers, got 'ranks'
sbc.ranks(draws[:, 0], draws, 0)                  | generator must be a torch.Generator, .* got 0
plots.rhat_comparison(None, p)                    | weights must be a tensor or an array of numbers, got None
posterior.predict(chain, x)                       | draws must be a tensor or an array of numbers, got an object of type Chain: pass its attribute draws
posterior.predict(None, x)                        | draws must be a tensor or an array of numbers, got None
posterior.predict("draws", x)                     | draws must be a tensor or an array of numbers, got 'draws'
posterior.predict(draws, data)                    | x must be a tensor or an array of numbers, got an object of type Data
posterior.predict(draws, None)                    | x must be a tensor or an array of numbers, got None
posterior.predict(draws, "x")                     | x must be a tensor or an array of numbers, got 'x'
posterior.log_likelihoods(chain)                  | draws must be a tensor or an array of numbers, .*pass its attribute draws
posterior.log_likelihoods(None)                   | draws must be a tensor or an array of numbers, got None
posterior.log_likelihoods(draws, x)               | data must be a Data, as by Data\(x, y\), got a tensor
posterior.log_likelihoods(draws, (x, y))          | data must be a Data, as by Data\(x, y\), got an object of type tuple
posterior.sample_prior("3", generator)            | num must be a whole number of at least 1, got '3'
posterior.sample_prior(True, generator)           | num must be a whole number of at least 1, got True
posterior.sample_prior((3,), generator)           | num must be a whole number of at least 1, got an object of type tuple
posterior.sample_prior(3, 0)                      | generator must be a torch.Generator, such as .* got 0
posterior.sample_prior(3, None)                   | generator must be a torch.Generator, .* got None
posterior.sample_prior(3, np.random.default_rng(0)) | generator must be a torch.Generator, .* got an object of type Generator
posterior.simulate(theta, 0)                      | generator must be a torch.Generator, such as .* got 0
posterior.simulate(theta, None)                   | generator must be a torch.Generator, .* got None
posterior.simulate([0.0], generator)              | theta must be a torch.Tensor, got an object of type list
posterior.with_targets(None)                      | y must be a tensor or an array of numbers, got None
posterior.with_targets("y")                       | y must be a tensor or an array of numbers, got 'y'
posterior.with_targets(data)                      | y must be a tensor or an array of numbers, got an object of type Data
two.dataset("0")                                  | index must be a whole number .* got '0'
two.dataset(None)                                 | index must be a whole number .* got None
two.dataset(True)                                 | index must be a whole number .* got True
two.dataset(slice(1))                             | index must be a whole number .* got an object of type slice
posterior.numpy()("theta")                        | theta must be a tensor or an array of numbers, got 'theta'
posterior.numpy()(None)                           | theta must be a tensor or an array of numbers, got None
sample(net, hmc, 3)                               | posterior must be a Posterior, .* got an object of type Sequential
sample(None, hmc, 3)                              | posterior must be a Posterior, .* got None
sample(Posterior, hmc, 3)                         | posterior must be a Posterior, .* got the class Posterior itself
sample(posterior.log_prob, hmc, 3)                | posterior must be a Posterior, .* got an object of type method
sample(posterior, "hmc", 3)                       | kernel must be .*HMC\(step_size=0.05, num_steps=4\).* got 'hmc'
sample(posterior, HMC, 3)                         | kernel must be .* got the class HMC itself
sample(posterior, 0.1, 3)                         | kernel must be .* got 0.1
sample(posterior, hmc, "3")                       | num_samples must be a whole number of at least 1, got '3'
sample(posterior, hmc, None)                      | num_samples must be a whole number of at least 1, got None
sample(posterior, hmc, True)                      | num_samples must be a whole number of at least 1, got True
sample(posterior, hmc, [3])                       | num_samples must be a whole number of at least 1, got an object of type list
sample(posterior, hmc, 3, num_chains="2")         | num_chains must be a whole number of at least 1, got '2'
sample(posterior, hmc, 3, num_chains=True)        | num_chains must be a whole number of at least 1, got True
sample(posterior, hmc, 3, warmup="no")            | warmup must be a whole number of at least 0, got 'no'
sample(posterior, hmc, 3, warmup=True)            | warmup must be a whole number of at least 0, got True
sample(posterior, hmc, 3, init=True)              | init must be a tensor or an array of numbers, got True
sample(posterior, hmc, 3, init=chain)             | init must be a tensor or an array of numbers, got an object of type Chain
sample(posterior, hmc, 3, init={"a": 1})          | init must be a tensor or an array of numbers, got an object of type dict
sample(posterior, hmc, 3, seed="1")               | seed must be a whole number or a torch.Generator, got '1'
sample(posterior, hmc, 3, seed=1.5)               | seed must be a whole number or a torch.Generator, got 1.5
sample(posterior, hmc, 3, seed=True)              | seed must be a whole number or a torch.Generator, got True
sample(posterior, hmc, 3, seed=[1])               | seed must be a whole number or a torch.Generator, got an object of type list
sample(posterior, hmc, 3, seed=np.random.default_rng(0)) | seed must be a whole number or a torch.Generator, got a generator of NumPy's: pass int\(rng.integers
sample(posterior, hmc, 3, 4, batch_size=2, seed="1") | seed must be a whole number or a torch.Generator, got '1'
sample(posterior, hmc, 3, progress="no")          | progress must be True or False, got 'no'
sample(posterior, hmc, 3, progress=None)          | progress must be True or False, got None
sample(posterior, hmc, 3, progress=1)             | progress must be True or False, got 1
sample(posterior, hmc, 3, batch_size="1")         | batch_size must be a whole number of at least 1, got '1'
sample(posterior, hmc, 3, batch_size=True)        | batch_size must be a whole number of at least 1, got True
sample(posterior, hmc, 3, workers="2")            | workers must be a whole number of at least 1, got '2'
sample(posterior, hmc, 3, workers=True)           | workers must be a whole number of at least 1, got True
sample(posterior, hmc, 3, workers=None)           | workers must be a whole number of at least 1, got None
sample(posterior, hmc, 3, keep=first)             | keep must be a mapping from names to functions of theta, .* got an object of type function
sample(posterior, hmc, 3, keep=["p"])             | keep must be a mapping from names to functions of theta, .* got an object of type list
sample(posterior, hmc, 3, keep={"p": p})          | keep\['p'\] must be a function of theta, got a tensor of shape
sample(posterior, hmc, 3, keep={3: first})        | a name in keep must be a str, got 3
sample(posterior, hmc, 3, keep={"p": lambda theta: None}) | what keep\['p'\] returns must be a tensor or an array of numbers, got None
sample(posterior, hmc, 3, keep={"p": first}, keep_draws=0) | keep_draws must be True or False, got 0
find_map(net)                                     | posterior must be a Posterior, .* got an object of type Sequential
find_map(posterior, "16")                         | num must be a whole number of at least 1, got '16'
find_map(posterior, None)                         | num must be a whole number of at least 1, got None
find_map(posterior, True)                         | num must be a whole number of at least 1, got True
find_map(posterior, 2, seed="1")                  | seed must be a whole number or a torch.Generator, got '1'
find_map(posterior, 2, seed=np.random.default_rng(0)) | seed must be a whole number or a torch.Generator, got a generator of NumPy's: pass int
find_map(posterior, 2, 0, progress="no")          | progress must be True or False, got 'no'
Chain.from_draws("draws", posterior)              | draws must be a tensor or an array of numbers, got 'draws'
Chain.from_draws(None, posterior)                 | draws must be a tensor or an array of numbers, got None
Chain.from_draws(chain, posterior)                | draws must be a tensor or an array of numbers, .*pass its attribute draws
Chain.from_draws(draws, net)                      | posterior must be a Posterior, .* got an object of type Sequential
Chain.from_draws(draws, None)                     | posterior must be a Posterior, .* got None
Chain.from_draws(draws, posterior, sampler=None)  | sampler must be a str, .* got None
Chain.from_draws(draws, posterior, sampler=hmc)   | sampler must be a str, .* got an object of type HMC
Chain.from_draws(draws, posterior, seconds="2")   | seconds must be a number, got '2'
Chain.from_draws(draws, posterior, seconds=None)  | seconds must be a number, got None
Chain.from_draws(draws, posterior, seconds=True)  | seconds must be a number, got True
Chain.from_draws(draws, posterior, stats=[1])     | stats must be a mapping from names to values, got an object of type list
Chain.from_draws(draws, posterior, stats={"energy": None}) | statistic 'energy' must be a tensor or an array of numbers, got None
Chain.from_draws(draws, posterior, stats={"energy": "high"}) | statistic 'energy' must be a tensor or an array of numbers, got 'high'
Chain.from_arviz("run.nc", posterior)             | data must be ArviZ's InferenceData, as by arviz.from_netcdf\(path\), got 'run.nc'
Chain.from_arviz(draws, posterior)                | data must be ArviZ's InferenceData, .* got a tensor
Chain.from_arviz(None, posterior)                 | data must be ArviZ's InferenceData, .* got None
Chain.from_arviz(trace, net)                      | posterior must be a Posterior, .* got an object of type Sequential
chain.to_arviz("yes")                             | log_likelihoods must be a tensor or an array of numbers, got 'yes'
chain.to_arviz(True)                              | log_likelihoods must be a tensor or an array of numbers, got True
chain.save(None)                                  | a path must be a str or a pathlib.Path, got NoneType
chain.save(io.BytesIO())                          | a path must be a str or a pathlib.Path, got BytesIO
Chain.load(None)                                  | a path must be a str or a pathlib.Path, got NoneType
Chain.load(io.BytesIO())                          | a path must be a str or a pathlib.Path, got BytesIO
Chain.load(b"run.nc")                             | a path must be a str or a pathlib.Path, got bytes
diagnostics.rhat(chain)                           | draws must be a tensor or an array of numbers, .*pass its attribute draws
diagnostics.rhat("draws")                         | draws must be a tensor or an array of numbers, got 'draws'
diagnostics.rhat(None)                            | draws must be a tensor or an array of numbers, got None
diagnostics.ess(chain)                            | draws must be a tensor or an array of numbers, .*pass its attribute draws
diagnostics.mcse({"a": 1})                        | draws must be a tensor or an array of numbers, got an object of type dict
diagnostics.nested_rhat(None, 2)                  | draws must be a tensor or an array of numbers, got None
diagnostics.nested_rhat(draws, "2")               | num_superchains must be a whole number of at least 2, got '2'
diagnostics.nested_rhat(draws, None)              | num_superchains must be a whole number of at least 2, got None
diagnostics.nested_rhat(draws, True)              | num_superchains must be a whole number of at least 2, got True
diagnostics.convergence(None, x)                  | predictions must be a tensor or an array of numbers, got None
diagnostics.convergence(chain, x)                 | predictions must be a tensor or an array of numbers, got an object of type Chain: pass what is computed
diagnostics.convergence(p, None)                  | places must be a tensor or an array of numbers, got None
diagnostics.convergence(p, data)                  | places must be a tensor or an array of numbers, got an object of type Data
predict.predictive_mean(None)                     | predictions must be a tensor or an array of numbers, got None
predict.predictive_mean(chain)                    | predictions must be a tensor or an array of numbers, got an object of type Chain: pass what is computed
predict.predictive_mean(p, "yes")                 | of_classes must be True or False, got 'yes'
predict.predictive_quantiles(None, [0.5])         | values must be a tensor or an array of numbers, got None
predict.predictive_quantiles(p, "0.5")            | quantiles must be a tensor or an array of numbers, got '0.5'
predict.predictive_quantiles(p, None)             | quantiles must be a tensor or an array of numbers, got None
predict.split_uncertainty(None)                   | probabilities must be a tensor or an array of numbers, got None
predict.split_uncertainty(p, "yes")               | of_classes must be True or False, got 'yes'
predict.entropy("p")                              | p must be a tensor or an array of numbers, got 'p'
predict.log_score(None)                           | log_likelihoods must be a tensor or an array of numbers, got None
predict.brier_score(None, y)                      | p must be a tensor or an array of numbers, got None
predict.brier_score(p[0, 0], "y")                 | y must be a tensor or an array of numbers, got 'y'
predict.brier_score(p[0, 0], data)                | y must be a tensor or an array of numbers, got an object of type Data
predict.calibration_error(None, y)                | p must be a tensor or an array of numbers, got None
predict.calibration_error(p[0, 0], y, "1")        | seed must be a whole number of at least 0, got '1'
predict.calibration_error(p[0, 0], y, None)       | seed must be a whole number of at least 0, got None
predict.calibration_error(p[0, 0], y, generator)  | seed must be a whole number of at least 0, got an object of type Generator
predict.mean_difference("12")                     | differences must be a tensor or an array of numbers, got '12'
predict.mean_difference(None)                     | differences must be a tensor or an array of numbers, got None
predict.mean_difference([1, 2], "0")              | overlap must be a number, got '0'
predict.mean_difference([1, 2], None)             | overlap must be a number, got None
calibrate(net, hmc, {})                           | posterior must be a Posterior, .* got an object of type Sequential
calibrate(posterior, "hmc", {})                   | kernel must be .* got 'hmc'
calibrate(posterior, HMC, {})                     | kernel must be .* got the class HMC itself
calibrate(posterior, hmc, first)                  | quantities must be a mapping from names to functions, got an object of type function
calibrate(posterior, hmc, [first])                | quantities must be a mapping from names to functions, got an object of type list
calibrate(posterior, hmc, {"a": 3})               | quantity 'a' must be a function of theta, got 3
calibrate(posterior, hmc, {"a": draws})           | quantity 'a' must be a function of theta, got a tensor
calibrate(posterior, hmc, {"a": lambda theta: "1"}) | quantity 'a' must be a tensor or an array of numbers, got '1'
calibrate(posterior, hmc, {3: first})             | the name of a quantity must be a str, got 3
calibrate(posterior, hmc, {}, num_datasets="2")   | num_datasets must be a whole number of at least 1, got '2'
calibrate(posterior, hmc, {}, num_draws=None)     | num_draws must be a whole number of at least 1, got None
calibrate(posterior, hmc, {}, thin=True)          | thin must be a whole number of at least 1, got True
calibrate(posterior, hmc, {}, thin="1")           | thin must be a whole number of at least 1, got '1'
calibrate(posterior, hmc, {}, warmup="1")         | warmup must be a whole number of at least 0, got '1'
calibrate(posterior, hmc, {}, seed="1")           | seed must be a whole number or a torch.Generator, got '1'
calibrate(posterior, hmc, {}, seed=np.random.default_rng(0)) | seed must be a whole number or a torch.Generator, got a generator of NumPy's
sbc.ecdf_band("512", 15, 0.05)                    | num_datasets must be a whole number of at least 1, got '512'
sbc.ecdf_band(512, None, 0.05)                    | num_draws must be a whole number of at least 1, got None
sbc.ecdf_band(512, 15, "0.05")                    | alpha must be a number, got '0.05'
symmetry.fold(chain, flat)                        | draws must be a tensor or an array of numbers, .*pass its attribute draws
symmetry.fold(None, flat)                         | draws must be a tensor or an array of numbers, got None
symmetry.fold(draws, posterior)                   | expected the network as a FlatModule, got a Posterior: pass posterior.flat
symmetry.fold(draws, None)                        | expected the network as a FlatModule, got a NoneType
symmetry.copies(net)                              | expected the network as a FlatModule, got a Sequential
widgets.prior_explorer("0.09")                    | precision must be a number, got '0.09'
widgets.prior_explorer(True)                      | precision must be a number, got True
widgets.posterior_explorer(draws, posterior)      | a chain must be a Chain, .* got a tensor
widgets.posterior_explorer({"a": draws}, posterior) | a chain must be a Chain, .* got a tensor
widgets.posterior_explorer(None, posterior)       | a chain must be a Chain, .* got None
widgets.posterior_explorer(chain, net)            | posterior must be a Posterior, .* got an object of type Sequential
widgets.posterior_explorer(posterior, chain)      | posterior must be a Posterior, .* got an object of type Chain
widgets.sampler_explorer(chain)                   | posterior must be a Posterior, .* got an object of type Chain
widgets.sampler_explorer(posterior, start="prior") | start must be a tensor or an array of numbers, got 'prior'
widgets.data_explorer(x)                          | data must be a Data, as by Data\(x, y\), got a tensor
plots.traces(draws, [0])                          | chain must be a Chain, .* got a tensor
plots.traces(chain, 0)                            | parameters must be .* got 0
plots.energies(draws, 0)                          | chain must be a Chain, .* got a tensor
plots.ranks(chain, ["a"])                         | draws must be a tensor or an array of numbers, .*pass its attribute draws
plots.autocorrelations(chain, ["a"])              | draws must be a tensor or an array of numbers, .*pass its attribute draws
plots.points(x)                                   | data must be a Data, as by Data\(x, y\), got a tensor
plots.decision_maps(p[0, 0], grid)                | maps must be a mapping from titles to values, got a tensor
plots.parameter_layout(net)                       | flat must be a FlatModule, such as posterior.flat, got an object of type Sequential
plots.convergence_maps(p, data)                   | convergence must be .*convergence\(predictions, grid\), got a tensor
"""

VALUES = r"""
sample(posterior, HMC(), 3)                       | a warm-up finds how many steps HMC makes, and there is none: add warmup=500
ReplicaExchange(HMC())                            | replica exchange does not find how many steps its kernel makes: say how
Symmetric(hmc, 0)                                 | every must be a whole number of at least 1, got 0
NUTS(0.1, 0)                                      | max_tree_depth must be a whole number of at least 1, got 0
NUTS(0.1, 40)                                     | max_tree_depth is 40, and a trajectory of so many doublings would .*
NUTS(target_acceptance=1.5)                       | target_acceptance must be between 0 and 1, got 1.5; 0.8 is usual, .*
NUTS(inv_mass=torch.ones(2), dense_mass=True)     | a given inv_mass is kept, so that dense_mass=True has nothing to learn
MAMS(0)                                           | step_size must be positive and finite, got 0
MAMS(0.1, inf)                                    | trajectory_length must be positive and finite, got inf
MAMS(inv_mass=torch.eye(2))                       | inv_mass must be None or a tensor of shape \(D,\), got \(2, 2\): pass the diagonal
MAMS(inv_mass=[1.0, -2.0])                        | inv_mass must be positive and finite, but it holds -2
MCLMC(nan)                                        | step_size must be positive and finite, got nan
MCLMC(0.1, -1)                                    | decoherence_length must be positive and finite, got -1
MCLMC(inv_mass=torch.eye(2))                      | inv_mass must be None or a tensor of shape \(D,\), got \(2, 2\): pass the diagonal
MCLMC(energy_variance=0)                          | energy_variance must be positive and finite, got 0
SGLD(0.0, 5)                                      | step_size must be positive and finite, got 0.0
SGLD(0.1, 0)                                      | batch_size must be a whole number of at least 1, got 0
SGLD(0.1, 2.5)                                    | batch_size must be a whole number of at least 1, got 2.5
SGLD(0.1, 5, cycle_length=0)                      | cycle_length must be a whole number of at least 1, got 0
SGLD(0.1, 5, exploration=1.0)                     | exploration must be a fraction, 0 or more and less than 1, got 1
SGLD(0.1, 5, exploration=nan)                     | exploration must be a fraction, 0 or more and less than 1, got nan
SGLD(0.1, 5, cycle_length=2)                      | exploration=0.8 leaves none of a cycle's 2 epochs to sample in
SGHMC(0.1, 5, friction=0.0)                       | friction must be above 0 and at most 1, got 0; with 0.1
SGHMC(0.1, 5, friction=1.5)                       | friction must be above 0 and at most 1, got 1.5
HMC(-0.1, 3)                                      | step_size must be positive and finite, got -0.1
HMC(nan, 3)                                       | step_size must be positive and finite, got nan
HMC(inf, 3)                                       | step_size must be positive and finite, got inf
HMC(0, 3)                                         | step_size must be positive and finite, got 0
HMC(0.1, 0)                                       | num_steps must be a whole number of at least 1, got 0
HMC(0.1, -3)                                      | num_steps must be a whole number of at least 1, got -3
HMC(0.1, 2.5)                                     | num_steps must be a whole number of at least 1, got 2.5
HMC(0.1, nan)                                     | num_steps must be a whole number of at least 1, got nan
HMC(0.1, inf)                                     | num_steps must be a whole number of at least 1, got inf
HMC(0.1, 3, jitter=1.0)                           | jitter must be a fraction
HMC(0.1, 3, jitter=-0.1)                          | jitter must be a fraction
HMC(0.1, 3, jitter=nan)                           | jitter must be a fraction
HMC(0.1, 3, inv_mass=torch.tensor(2.0))           | inv_mass must be None or a tensor of shape \(D,\) or \(D, D\), got \(\)
HMC(0.1, 3, inv_mass=torch.ones(2, 2, 2))         | inv_mass must be None or a tensor of shape
HMC(0.1, 3, inv_mass=torch.ones(2, 3))            | must be a symmetric matrix, got shape \(2, 3\)
HMC(0.1, 3, inv_mass=torch.tensor([1.0, nan]))    | inv_mass must be positive and finite, but it holds nan
HMC(0.1, 3, inv_mass=torch.ones(2).to_sparse())   | inv_mass is sparse: pass inv_mass.to_dense
HMC(0.1, 3, inv_mass=torch.ones(2) * 1j)          | inv_mass is torch.complex64: take real numbers
ReplicaExchange(hmc, 1)                           | num_temperatures must be a whole number of at least 2, got 1
ReplicaExchange(hmc, 2.5)                         | num_temperatures must be a whole number of at least 2, got 2.5
ReplicaExchange(hmc, 2, [0.0, 0.5])               | inverse_temperatures must be 2 numbers that rise from 0, .* got \[0.0, 0.5\]
ReplicaExchange(hmc, 2, [0.0, nan])               | inverse_temperatures must be 2 numbers that rise from 0
ReplicaExchange(hmc, 2, step_sizes=[0.1, -0.1])   | step_sizes must be 2 positive and finite numbers
ReplicaExchange(hmc, 2, step_sizes=[0.1])         | step_sizes must be 2 positive and finite numbers
ReplicaExchange(hmc, 2, reference=[1.0, 0.0])     | reference must be standard deviations .* positive and finite; got the value 0
ReplicaExchange(hmc, 2, reference=[1.0, nan])     | reference must be standard deviations .* positive and finite; got the value nan
ReplicaExchange(hmc, 2, reference=1.0)            | reference must be standard deviations .*; got the shape \(\)
fit_reference(posterior, np.ones((3, 2)))         | draws must have the shape \(..., \d+\), got \(3, 2\)
fit_reference(posterior, np.zeros(posterior.dim)) | draws must be finite, and not 0 in all draws
Gaussian(0)                                       | scale \(a standard deviation\) must be positive and finite, got 0
Gaussian(nan)                                     | scale \(a standard deviation\) must be positive and finite, got nan
Gaussian(-1)                                      | scale \(a standard deviation\) must be positive and finite, got -1
LogScale(0)                                       | num must be a whole number of at least 1, got 0
LogScale(1.5)                                     | num must be a whole number of at least 1, got 1.5
NormalPrior(0)                                    | precision \(1 / variance\) must be positive and finite, got 0
NormalPrior(inf)                                  | precision \(1 / variance\) must be positive and finite, got inf
NormalPrior({})                                   | there is no pattern
NormalPrior(torch.ones(2) * 1j)                   | precision is torch.complex64: take real numbers
NormalPrior(torch.ones(2).to_sparse())            | precision is sparse
NormalPrior(torch.ones(2, 2))                     | precision has shape \(2, 2\): pass one number, a vector .*, or a mapping
ElementPrior({})                                  | there is no pattern
FanInPrior(0)                                     | weight, a standard deviation, must be positive and finite, got 0
FanInPrior(1, inf)                                | bias, a standard deviation, must be positive and finite, got inf
Data(x.to_sparse(), y)                            | x is sparse: pass x.to_dense
Data(x, y.to(torch.complex64))                    | y is torch.complex64: take real numbers
Data(torch.tensor(1.0), y)                        | x holds no points: its shape is \(\)
Data(1.0, y)                                      | x holds no points: its shape is \(\)
Data([], [])                                      | x holds no points: its shape is \(0,\)
Data([[nan]], [0])                                | x has 1 NaN or infinite values
Data(pd.DataFrame({"a": [1.0, None]}), [0, 1])    | x has 1 NaN or infinite values, the first at \[1, 0\]
Data(x, y[:3])                                    | x has 80 points and y has 3
data.to(torch.int64)                              | x would lose its fractions in torch.int64
data.to(torch.complex64)                          | x would .* torch.complex64
boxes(7)                                          | n must be a positive multiple of 4 .* got 7
boxes(0)                                          | n must be a .* got 0
boxes(-4)                                         | n must be a .* got -4
boxes(4.5)                                        | n must be a .* got 4.5
boxes(80, -1)                                     | seed must be a whole number of at least 0, got -1
boxes(4 * 10**12)                                 | n=4000000000000 points would take .* GiB
square_grid(1)                                    | num must be a whole number of at least 2, got 1
square_grid(2.5)                                  | num must be a whole number of at least 2, got 2.5
square_grid(25, 0)                                | limit must be positive and finite, got 0
square_grid(25, nan)                              | limit must be positive and finite, got nan
square_grid(25, inf)                              | limit must be positive and finite, got inf
square_grid(10**6)                                | num=1000000 makes a grid that would take .* GiB
square_grid(25, like=torch.ones(1, dtype=torch.int64)) | like has dtype torch.int64: a grid needs floats
FlatModule(nn.Tanh())                             | no parameter with requires_grad=True
flat.unravel(theta[:3])                           | theta has shape \(3,\), but this network has 20 parameters
flat.ravel({})                                    | expected the parameters
Posterior(net, Data(x[:, :1], y), prior, Bernoulli()) | Sequential can't be called on inputs of shape \(80, 1\) and torch.float64: mat1 and mat2 shapes
Posterior(net, Data(x.long(), y), prior, Bernoulli()) | Sequential can't be called on inputs of shape \(80, 2\) and torch.int64: mat1 and mat2 must have the same dtype
Posterior(nn.Bilinear(2, 2, 1), data, prior, Bernoulli()) | Bilinear can't be called on inputs of shape \(80, 2\) .* missing 1 required
Posterior(net, data, prior, Bernoulli(), "auto-grad") | gradient must be 'auto', 'closed-form' or 'autograd', got 'auto-grad'
Posterior(net, data, prior, Bernoulli(), None)    | gradient must be 'auto', 'closed-form' or 'autograd', got None
Posterior(net, data, prior, Bernoulli(), ["auto"]) | gradient must be 'auto', 'closed-form' or 'autograd', got an object of type list
posterior.log_prob(theta.float())                 | theta has dtype torch.float32, but this posterior computes in torch.float64: pass theta.to
posterior.log_prior(theta.float())                | theta has dtype torch.float32, but this posterior
posterior.log_likelihood(theta.long())            | theta has dtype torch.int64, but this posterior
posterior.log_prob_and_grad(theta.float())        | theta has dtype torch.float32, but this posterior
posterior.log_prob(theta.to(torch.complex128))    | theta has dtype torch.complex128, but this posterior
posterior.log_prob(theta.to("meta"))              | theta lies on meta, but this posterior on cpu: pass theta.to
posterior.log_prob(torch.tensor(0.0))             | theta has shape \(\), but this network has 20
posterior.log_prob(draws)                         | theta has shape \(2, 8, 20\), but this network has 20
posterior.log_prob(theta[:0])                     | theta has shape \(0,\), but this network has 20
posterior.simulate(theta.float(), generator)      | theta has dtype torch.float32, but this posterior
posterior.outputs(theta, x[0])                    | x has shape \(2,\), but the data's inputs have shape \(M, 2\)
posterior.outputs(theta, x[:, :1])                | x has shape \(80, 1\), but the data's inputs have shape \(M, 2\)
posterior.outputs(theta, x.float())               | x has dtype torch.float32 and lies on cpu, but this posterior's inputs have torch.float64
posterior.outputs(theta.float(), x[:3])           | theta has dtype torch.float32, but this posterior
posterior.log_prob_and_grad(torch.zeros(0, 20).double()) | num_lanes must be a whole number of at least 1, got 0
posterior.numpy()(np.zeros((0, 20)))              | num_lanes must be a whole number of at least 1, got 0
posterior.log_likelihoods(draws, Data(x[:, :1], y)) | x has shape \(80, 1\), but the data's inputs have shape \(M, 2\)
sbc.ranks(draws[0], draws, generator)             | draws have shape \(2, 8, 20\), and truths
plots.points(Data(x[:, :1], y))                   | this figure shows inputs of shape \(N, 2\), but these have shape \(80, 1\)
posterior.predict(draws[..., :3], x)              | theta has shape \(2, 8, 3\), but this network has 20
posterior.predict(draws.to(torch.complex128), x)  | draws is torch.complex128: take real numbers
posterior.predict(draws, x.to(torch.complex128))  | x is torch.complex128: take real numbers
posterior.predict(draws, x.to_sparse())           | x is sparse: pass x.to_dense
posterior.predict(draws, x[:0])                   | x has shape \(0, 2\), but the data's inputs
posterior.predict(draws, x[0])                    | x has shape \(2,\), but the data's inputs
posterior.predict(draws, 3.0)                     | x has shape \(\), but the data's inputs
posterior.predict(3.0, x)                         | theta has shape \(\), but this network has 20
posterior.log_likelihoods(draws[0, 0, :3])        | theta has shape \(3,\), but this network has 20
posterior.sample_prior(-1, generator)             | num must be a whole number of at least 1, got -1
posterior.sample_prior(2.5, generator)            | num must be a whole number of at least 1, got 2.5
posterior.sample_prior(10**12, generator)         | num=1000000000000 vectors would take .* GiB
posterior.with_targets(y[:3])                     | the targets have shape \(3,\), but
posterior.with_targets(torch.tensor(1.0))         | the targets have shape \(\), but
posterior.with_targets(y.to_sparse())             | y is sparse
posterior.with_targets(2 * y)                     | Bernoulli needs labels 0 and 1
two.dataset(2)                                    | index must be a whole number of at least 0 and at most 1, got 2
two.dataset(-1)                                   | index must be a whole number of at least 0 and at most 1, got -1
posterior.dataset(7)                              | index must be a whole number of at least 0 and at most 0, got 7
posterior.numpy()(np.zeros(3))                    | theta has shape \(3,\), but this network has 20
posterior.numpy()(1j * np.zeros(20))              | theta is torch.complex128: take real numbers
sample(posterior, hmc, 0)                         | num_samples must be a whole number of at least 1, got 0
sample(posterior, hmc, 2.5)                       | num_samples must be a whole number of at least 1, got 2.5
sample(posterior, hmc, nan)                       | num_samples must be a whole number of at least 1, got nan
sample(posterior, hmc, inf)                       | num_samples must be a whole number of at least 1, got inf
sample(posterior, hmc, 10**12)                    | num_samples=1000000000000 draws of 1 chains would take .* GiB
sample(posterior, hmc, 3, num_chains=10**12)      | num_samples=3 draws of 1000000000000 chains would take .* GiB
sample(posterior, hmc, 3, num_chains=0)           | num_chains must be a whole number of at least 1, got 0
sample(posterior, hmc, 3, warmup=-1)              | warmup must be a whole number of at least 0, got -1
sample(posterior, hmc, 3, batch_size=0)           | batch_size must be a whole number of at least 1, got 0
sample(posterior, hmc, 3, workers=0)              | workers must be a whole number of at least 1, got 0
sample(posterior, hmc, 3, keep_draws=False)       | keep_draws=False leaves nothing to record
sample(posterior, hmc, 3, keep={}, keep_draws=False) | keep_draws=False leaves nothing to record
sample(posterior, hmc, 3, keep={"a b": first})    | the name of a function in keep must be one word of letters, digits and underscores, got 'a b'
sample(posterior, hmc, 3, keep={"theta": first})  | a function in keep can't be called theta:
sample(posterior, hmc, 3, keep={"lp": first})     | a function in keep can't be called lp:
sample(posterior, hmc, 3, keep={"tempering_p": first}) | a function in keep can't be called tempering_p:
sample(posterior, hmc, 3, keep={"p": first, "P": first}) | names in keep must differ in more than capitals, got p, P
sample(posterior, hmc, 3, keep={"p": first, "p_dim_0": first}) | keep\['p_dim_0'\] has the name of a dimension of keep\['p'\]
sample(posterior, hmc, 3, keep={"p": lambda theta: theta.mean()}) | keep\['p'\] must return a row for each draw, of theta \(2, 20\) a tensor of shape \(2, ...\), got \(\)
sample(posterior, hmc, 3, keep={"p": lambda theta: theta[:, :0]}) | keep\['p'\] must return a row for each draw, .* got \(2, 0\)
sample(posterior, hmc, 3, keep={"p": lambda theta: 1j * theta}) | what keep\['p'\] returns is torch.complex128: take real numbers
sample(posterior, hmc, 3, keep={"p": lambda theta: theta.to(torch.float8_e5m2)}) | what keep\['p'\] returns has dtype torch.float8_e5m2
sample(posterior, hmc, 3, keep={"p": lambda theta: theta - theta.mean(0)}) | keep\['p'\] must be a function of each draw alone
sample(posterior, hmc, 3, compile="yes")          | compile must be True, False or 'auto', got 'yes'
sample(posterior, hmc, 3, compile=1)              | compile must be True, False or 'auto', got 1
sample(posterior, hmc, 3, compile=None)           | compile must be True, False or 'auto', got None
sample(posterior, hmc, 3, init="prior")           | init must be starting points of shape \(D,\) or \(C, D\), 'map', or None for draws from the prior; got 'prior'
sample(posterior, hmc, 3, init="MAP")             | init must be starting points .*, 'map', or None .*; got 'MAP'
sample(two, hmc, 3, 2, init="map")                | there are 2 data sets, each with maxima of its own: climb to those of posterior.dataset\(k\)
sample(posterior, hmc, 3, init=theta[:3])         | theta has shape \(3,\), but this network has 20
sample(posterior, hmc, 3, init=nan * theta)       | chain 0 starts where the log density is nan
sample(posterior, hmc, 3, init=1j * theta)        | init is torch.complex128: take real numbers
sample(posterior, hmc, 3, init=theta.to_sparse()) | init is sparse: pass init.to_dense
sample(posterior, hmc, 3, init=torch.zeros(0, 20)) | init has 0 starting points
sample(posterior, HMC(0.1, 3, torch.ones(3)), 3)  | inv_mass has shape \(3,\), but the posterior has 20 parameters
find_map(posterior, 0)                            | num must be a whole number of at least 1, got 0
find_map(posterior, 2.5)                          | num must be a whole number of at least 1, got 2.5
find_map(posterior, 10**12)                       | num=1000000000000 vectors would take .* GiB
find_map(two)                                     | there are 2 data sets, each with maxima of its own: climb to those of posterior.dataset\(k\)
Chain.from_draws(draws[0], posterior)             | draws have shape \(8, 20\), but this posterior's are
Chain.from_draws(1j * draws, posterior)           | draws is torch.complex128: take real numbers
Chain.from_draws(draws.to_sparse(), posterior)    | draws is sparse
Chain.from_draws(nan * draws, posterior)          | draws hold 320 NaN or infinite values
Chain.from_draws(draws, posterior, seconds=-1)    | seconds must not be negative, got -1
Chain.from_draws(draws, posterior, stats={"energy": y}) | statistic energy has shape \(80,\), expected \(2, 8\)
Chain.from_arviz(trace, posterior, "z")           | there is no variable 'z'
Chain.from_arviz(trace, posterior, None)          | there is no variable None
chain.to_arviz(draws[:, 1:])                      | log_likelihoods has shape
chain.save("")                                    | a path must name a file
diagnostics.rhat(torch.tensor(1.0))               | diagnostics need draws of shape \(chains, draws, ...\)
diagnostics.rhat(torch.zeros(2, 8, 0))            | no quantities
diagnostics.rhat(torch.zeros(0, 8))               | at least one chain
diagnostics.rhat(1j * draws)                      | draws is torch.complex128: take real numbers
diagnostics.rhat(draws.to_sparse())               | draws is sparse
diagnostics.rhat(nan * draws)                     | NaN or infinite
diagnostics.ess(draws, "bulks")                   | method must be 'bulk', 'tail' or 'mean', got 'bulks'
diagnostics.ess(draws, None)                      | method must be 'bulk', 'tail' or 'mean', got None
diagnostics.ess(draws, ["bulk"])                  | method must be 'bulk', 'tail' or 'mean', got an object of type list
diagnostics.nested_rhat(draws, 1)                 | num_superchains must be a whole number of at least 2, got 1
diagnostics.nested_rhat(draws, 2.5)               | num_superchains must be a whole number of at least 2, got 2.5
diagnostics.nested_rhat(draws, 3)                 | superchains of equally many chains
diagnostics.convergence(p, x[:3])                 | convergence needs predictions .* and places
diagnostics.convergence(p[0], x)                  | convergence needs predictions .* and places
predict.predictive_mean(torch.tensor(0.5))        | predictions have shape \(\), and need .*\(\.\.\., M\)
predict.predictive_mean(torch.zeros(0, 3))        | predictions have shape \(0, 3\), and need .* draws
predict.predictive_mean(p[0, 0, 0], True)         | predictions have shape \(\), and need .*\(\.\.\., M, K\)
predict.predictive_quantiles(p, [1.5])            | quantiles must lie in \[0, 1\], got 1.5
predict.predictive_quantiles(p, [nan])            | quantiles must lie in \[0, 1\], got nan
predict.predictive_quantiles(p, 0.5)              | quantiles must be several numbers, such as \[0.05, 0.95\], got 0.5
predict.predictive_quantiles(p[0, 0, 0], [0.5])   | values have shape \(\), and need
predict.split_uncertainty(2 * p)                  | probabilities must lie in \[0, 1\]
predict.split_uncertainty(nan * p)                | probabilities must lie in \[0, 1\], got nan
predict.split_uncertainty(p, True)                | probabilities of all classes must add up to 1
predict.split_uncertainty(torch.zeros(0, 3))      | probabilities have shape \(0, 3\), and need
predict.entropy(torch.tensor(1.5))                | probabilities must lie in \[0, 1\], got 1.5
predict.entropy(torch.tensor(nan))                | probabilities must lie in \[0, 1\], got nan
predict.log_score(torch.tensor(0.0))              | log_likelihoods have shape \(\), and need
predict.log_score(torch.zeros(0, 3))              | log_likelihoods have shape \(0, 3\), and need
predict.brier_score(p, y)                         | expected predictive probabilities of shape \(N,\) or \(N, K\)
predict.brier_score(p[0, 0], 2 * y)               | labels must be 0 to 1, got 2
predict.brier_score(p[0, 0], nan * y)             | labels must be 0 to 1, got nan
predict.calibration_error(p[0, 0], y[:3])         | expected predictive probabilities
predict.calibration_error(p[0, 0], y, -1)         | seed must be a whole number of at least 0, got -1
predict.mean_difference([1])                      | expected two differences or more
predict.mean_difference([1, nan])                 | differences hold 1 NaN or infinite values
predict.mean_difference([1, 2], -1)               | overlap must be n_test / n_train, or 0 .* got -1
predict.mean_difference([1, 2], nan)              | overlap must be n_test / n_train, or 0 .* got nan
predict.mean_difference([1, 2], inf)              | overlap must be n_test / n_train, or 0 .* got inf
calibrate(posterior, hmc, {}, num_datasets=0)     | num_datasets must be a whole number of at least 1, got 0
calibrate(posterior, hmc, {}, num_draws=0)        | num_draws must be a whole number of at least 1, got 0
calibrate(posterior, hmc, {}, thin=0)             | thin must be a whole number of at least 1, got 0
calibrate(posterior, hmc, {}, thin=1.5)           | thin must be a whole number of at least 1, got 1.5
calibrate(posterior, hmc, {}, thin=-2)            | thin must be a whole number of at least 1, got -2
calibrate(posterior, hmc, {}, warmup=-1)          | warmup must be a whole number of at least 0, got -1
calibrate(posterior, hmc, {"a": lambda theta: theta}) | quantity 'a' has shape \(2, 16, 20\), and must be one number for each theta, \(2, 16\)
calibrate(posterior, hmc, {"a": lambda theta: 1}) | quantity 'a' has shape \(\), and must be one number for each theta
calibrate(posterior, hmc, {"a": lambda theta: theta.sum()}) | quantity 'a' has shape \(\), and must be one number for each theta
calibrate(posterior, ReplicaExchange(hmc), {})    | replica exchange needs warmup=
sbc.ecdf_band(512, 15, 1.5)                       | alpha must lie between 0 and 1, got 1.5
sbc.ecdf_band(0, 15, 0.05)                        | num_datasets must be a whole number of at least 1, got 0
sbc.ecdf_band(512, 0, 0.05)                       | num_draws must be a whole number of at least 1, got 0
symmetry.fold(draws[..., :3], flat)               | draws have shape \(2, 8, 3\); this network takes
symmetry.fold(torch.tensor(1.0), flat)            | draws have shape \(\); this network takes
symmetry.fold(1j * draws, flat)                   | draws is torch.complex128: take real numbers
symmetry.fold(draws.long(), flat)                 | draws have dtype torch.int64
widgets.prior_explorer(0)                         | precision must be positive and finite, got 0
widgets.prior_explorer(nan)                       | precision must be positive and finite, got nan
widgets.posterior_explorer({}, posterior)         | there is no chain to look at
widgets.sampler_explorer(posterior, start=theta[:3]) | theta has shape \(3,\), but this network has 20
plots.traces(chain, [99])                         | parameters must be .* at most 19, got 99
plots.traces(chain, [-99])                        | parameters must be .* got -99
plots.ranks(draws, ["a"])                         | draws have shape \(2, 8, 20\) and there are 1 names
plots.ranks(draws[0], ["a"])                      | draws have shape \(8, 20\) and there are 1 names
plots.autocorrelations(draws, ["a"])              | draws have shape \(2, 8, 20\) and there are 1 names
plots.decision_maps({}, grid)                     | there is no map to draw
plots.rhat_maps({}, grid, data)                   | there is no map to draw
plots.rhat_map(x[:, 0], grid, data)               | a map needs a square grid and one value per point
plots.energies(chain, 8)                          | starts must be .* at most 6, got 8
animate.contours(p[0], x, data, ["a"], "alt")     | there are 8 frames and 1 titles
animate.contours(p[0, :0], x, data, [], "alt")    | there is no frame
"""

# Calls whose meaning is clear, and how they would be written properly: both give the same.
CLEAR = r"""
HMC(np.float32(0.5), np.int64(3)).step_size       | 0.5
HMC(torch.tensor(0.5), torch.tensor(3)).num_steps | 3
repr(HMC(np.float64(0.5), 3.0))                   | "HMC(step_size=0.5, num_steps=3)"
HMC(0.1, 3, np.ones(2)).inv_mass                  | torch.ones(2, dtype=torch.float64)
HMC(0.1, 3, [1.0, 2.0]).inv_mass                  | torch.tensor([1.0, 2.0], dtype=torch.float64)
repr(ChEES(torch.tensor(0.5), np.float64(2)))     | repr(ChEES(0.5, 2.0))
repr(MAMS(torch.tensor(0.5), np.float64(2)))      | repr(MAMS(0.5, 2.0))
repr(MCLMC(np.float64(0.5), torch.tensor(2)))     | repr(MCLMC(0.5, 2.0))
MCLMC(inv_mass=[1.0, 2.0]).inv_mass               | torch.tensor([1.0, 2.0], dtype=torch.float64)
ReplicaExchange(hmc, np.int64(2), [0, 1]).inverse_temperatures | torch.tensor([0, 1])
ReplicaExchange(hmc, 2.0).num_temperatures        | 2
repr(Gaussian(np.float32(0.5)))                   | "Gaussian(scale=0.5)"
Gaussian(torch.tensor(0.5)).scale                 | 0.5
len(LogScale(np.int64(2)).log_scale)              | 2
NormalPrior(np.full(20, 2.0)).distribution(flat).precision | NormalPrior(torch.full((20,), 2.0)).distribution(flat).precision
NormalPrior([2.0] * 20).distribution(flat).precision | NormalPrior(2.0).distribution(flat).precision
NormalPrior(np.float32(2)).distribution(flat).precision | NormalPrior(2.0).distribution(flat).precision
NormalPrior({"*": np.int64(2)}).distribution(flat).precision | NormalPrior(2.0).distribution(flat).precision
Data(x.numpy(), y.numpy()).x                      | x
Data(pd.DataFrame(x.numpy(), columns=["a", "b"]), pd.Series(y.numpy())).x | x
Data(pd.DataFrame(x.numpy()), pd.Series(y.numpy())).y | y
Data(pd.DataFrame(x.numpy()).iloc[::-1], y).x     | x.flip(0)
Data([[0.1, 0.2]], [1]).x                         | torch.tensor([[0.1, 0.2]], dtype=torch.float64)
Data([[0.1, 0.2]], [1]).y                         | torch.tensor([1])
Data(np.float32([[1]]), np.array([True])).x       | torch.tensor([[1.0]])
Data(np.array([[1.0]], ">f8"), [1]).x             | torch.tensor([[1.0]], dtype=torch.float64)
boxes(np.int64(8)).x                              | boxes(8).x
boxes(8.0, np.uint8(3)).x                         | boxes(8, 3).x
square_grid(np.int64(3), np.float32(2))           | square_grid(3, 2.0)
posterior.predict(draws.numpy(), x.numpy())       | posterior.predict(draws, x)
posterior.predict(draws.tolist(), x.tolist())     | posterior.predict(draws, x)
posterior.predict(draws, pd.DataFrame(x.numpy())) | posterior.predict(draws, x)
posterior.predict(nn.Parameter(theta), x)         | posterior.predict(theta, x)
posterior.log_likelihoods(draws.numpy())          | posterior.log_likelihoods(draws)
posterior.with_targets(y.numpy()).data.y          | y
posterior.sample_prior(np.int64(2), torch.Generator().manual_seed(1)) | posterior.sample_prior(2, torch.Generator().manual_seed(1))
two.dataset(np.int64(1)).data.y                   | 1 - y
posterior.numpy()(theta)[0]                       | posterior.log_prob(theta).item()
posterior.numpy()(theta.tolist())[0]              | posterior.log_prob(theta).item()
run(init=theta.numpy())                           | run(init=theta)
run(init=theta.tolist())                          | run(init=theta)
run(init=nn.Parameter(theta))                     | run(init=theta)
run(seed=np.int64(3))                             | run(seed=3)
run(seed=torch.tensor(3))                         | run(seed=3)
run(num_chains=np.int64(2), warmup=2.0)           | run(num_chains=2, warmup=2)
run(progress=np.False_)                           | run()
len(find_map(posterior, np.int64(2), np.int64(3), np.False_).ended) | 2
Chain.from_draws(draws.tolist(), posterior).draws | draws
Chain.from_draws(nn.Parameter(draws), posterior).stats["lp"].requires_grad | False
Chain.from_draws(draws, posterior, seconds=np.float32(2)).wall_time | 2.0
chain.to_arviz(posterior.log_likelihoods(draws).numpy()).groups() | chain.to_arviz(posterior.log_likelihoods(draws)).groups()
diagnostics.rhat(draws.numpy())                   | diagnostics.rhat(draws)
diagnostics.rhat(nn.Parameter(draws))             | diagnostics.rhat(draws)
diagnostics.ess(draws.tolist())                   | diagnostics.ess(draws)
diagnostics.nested_rhat(draws.numpy(), np.int64(2)) | diagnostics.nested_rhat(draws, 2)
repr(diagnostics.convergence(p.numpy(), x.numpy())) | repr(diagnostics.convergence(p, x))
predict.predictive_mean(p.numpy())                | predict.predictive_mean(p)
predict.predictive_mean(p > 0.5)                  | (p > 0.5).double().mean((0, 1))
predict.brier_score([True, False], [1, 0])        | 0.0
predict.predictive_quantiles(p.numpy(), torch.tensor([0.5])) | predict.predictive_quantiles(p, [0.5])
predict.split_uncertainty(p.tolist()).total       | predict.split_uncertainty(p).total
predict.brier_score(p[0, 0].numpy(), y.numpy())   | predict.brier_score(p[0, 0], y)
predict.calibration_error(p[0, 0].tolist(), y.tolist()) | predict.calibration_error(p[0, 0], y)
predict.mean_difference(torch.tensor([1.0, 2.0])) | predict.mean_difference([1.0, 2.0])
predict.mean_difference(pd.Series([1.0, 2.0]))    | predict.mean_difference([1.0, 2.0])
symmetry.fold(draws.numpy(), flat)                | symmetry.fold(draws, flat)
"""


def lines(table):
    pairs = [re.split(r" +\| ", line, maxsplit=1) for line in table.strip().splitlines()]
    return [pytest.param(*pair, id=pair[0]) for pair in pairs]


@pytest.fixture(scope="module")
def names():
    """What the calls of the tables are made of."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    data, prior, hmc = bnn_utils.boxes(), bnn_utils.NormalPrior(0.09), bnn_utils.HMC(0.1, 3)
    posterior = bnn_utils.Posterior(net, data, prior, bnn_utils.Bernoulli())
    chain = bnn_utils.sample(posterior, hmc, 8, 2, seed=1, progress=False)
    p = posterior.predict(chain.draws, data.x)

    def run(**kwargs):
        return bnn_utils.sample(posterior, hmc, 4, **{"seed": 1, "progress": False} | kwargs).draws

    def calibrate(*args, **kwargs):
        return sbc.simulation_based_calibration(*args, **{"num_datasets": 2, "thin": 1, "progress": False} | kwargs)

    modules = (animate, diagnostics, plots, predict, sbc, symmetry, widgets)
    return vars(bnn_utils) | {module.__name__.split(".")[-1]: module for module in modules} | {
        "np": np, "pd": pd, "torch": torch, "nn": nn, "distributions": distributions, "io": io,
        "nan": math.nan, "inf": math.inf,
        "net": net, "data": data, "x": data.x, "y": data.y, "prior": prior, "hmc": hmc, "posterior": posterior,
        "two": posterior.with_targets(torch.stack([data.y, 1 - data.y])), "flat": posterior.flat, "chain": chain,
        "draws": chain.draws, "theta": chain.draws[0, 0], "p": p, "grid": bnn_utils.square_grid(9),
        "trace": chain.to_arviz(), "generator": torch.Generator(), "first": lambda theta: theta[..., 0], "run": run,
        "calibrate": calibrate,
    }  # fmt: skip


@pytest.mark.parametrize(("call", "words"), lines(TYPES))
def test_a_wrong_type(names, call, words):
    with pytest.raises(TypeError, match=words):
        eval(call, dict(names))


@pytest.mark.parametrize(("call", "words"), lines(VALUES))
def test_a_wrong_value(names, call, words):
    with pytest.raises(ValueError, match=words):
        eval(call, dict(names))


@pytest.mark.parametrize(("call", "properly"), lines(CLEAR))
def test_a_clear_meaning(names, call, properly):
    found, expected = eval(call, dict(names)), eval(properly, dict(names))
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    else:
        assert found == expected
