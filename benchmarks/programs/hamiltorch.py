"""hamiltorch: one chain, from a log density of a flat vector or from a module."""

from __future__ import annotations

from typing import Any

import hamiltorch
import numpy as np
import torch
from torch import nn

from problem import NUM_STEPS, PRECISION, STEP_SIZE, Problem, Run
from programs.torch_density import log_density


def build(problem: Problem, num_draws: int) -> Run:
    log_prob = log_density(problem)
    return lambda seed: _run(seed, hamiltorch.sample, problem, num_draws, log_prob_func=log_prob)


def build_model(problem: Problem, num_draws: int) -> Run:
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    settings = {
        "model": model,
        "x": torch.from_numpy(problem.x),
        "y": torch.from_numpy(problem.y)[:, None],
        "model_loss": "binary_class_linear_output",
        "tau_list": [torch.tensor(PRECISION) for _ in model.parameters()],
    }
    return lambda seed: _run(seed, hamiltorch.sample_model, problem, num_draws, **settings)


def _run(seed: int, sample: Any, problem: Problem, num_draws: int, **settings: Any) -> tuple[np.ndarray, float]:
    hamiltorch.set_random_seed(seed)
    draws, acceptance = sample(
        params_init=torch.from_numpy(problem.starts[0]),
        num_samples=num_draws,
        num_steps_per_sample=NUM_STEPS,
        step_size=STEP_SIZE,
        burn=-1,  # none: with 0 the first draw is left out
        debug=2,  # returns the acceptance rate too
        verbose=False,
        **settings,
    )
    return torch.stack(draws[1:])[None].numpy(), acceptance  # the first is the starting point
