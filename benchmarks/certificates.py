"""Certificates: whether samplers of several packages are right, by one call of `certify` for each.

    python benchmarks/certificates.py                           # all, into certificates.csv and certificates.md
    python benchmarks/certificates.py --only "BlackJAX, NUTS"   # some of them
    python benchmarks/certificates.py --stored                  # the page again, of what was run

Each sampler runs in a process of its own, on one core, and gets its density from `Posterior`: by `posterior.jax()` in
JAX, by `posterior.log_prob` in torch, by `posterior.numpy()` in NumPy. What adapts does so in a chain of its own, from
a draw of the prior. Samplers of packages that are not installed have a row that says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from samplers import HERE, as_markdown, in_process, processor_name

if TYPE_CHECKING:
    import torch

    from bnn_utils import Posterior

TABLE, SEED = HERE / "certificates.csv", 1
STEP_SIZE, NUM_STEPS = 0.25, 6  # of all that have fixed ones
PILOT = 1000  # transitions of a chain in which a sampler adapts

PAGE = """# Certificates

`benchmarks/certificates.py` makes this table, by one call of `bnn_utils.certificates.certify` for each sampler. Chains
start at exact draws of three posteriors, and a right sampler leaves their distribution as it is: a linear regression, a
mixture of two modes with known weights, and a small neural network, whose exact draws were found by rejection. Shown
are p-values, each the smallest of an instrument's tests times their number. A sampler is right as far as can be seen if
the first three are at least 1e-4 / 3; a right one fails with a probability of 1e-4.

The bias is the largest that was found of any mean or standard deviation, in posterior standard deviations, with its
standard error; of 64 estimates without any bias the largest is two or three of these errors. MCLMC and SGLD leave out
the correction and are biased on purpose: the question is by how much. "From the prior" asks something else, whether
chains reach the network's posterior from draws of the prior in the time they have; a right sampler may need longer.

Samplers that take longer made fewer draws, by which smaller faults are not seen.

"""


class Method(NamedTuple):
    """A sampler, or a kernel of ours by its name; and as many chains and draws as it can make in some minutes."""

    sampler: Callable[..., Any] | str
    package: str
    num_chains: int = 2000
    num_draws: int = 50


Built = tuple[Callable[..., Any], Callable[..., Any]]

# --- JAX --------------------------------------------------------------------------------------------------------------


def by_blackjax(build: Callable[[Any, Any, Any], Built]) -> Callable[..., Any]:
    """A sampler of many chains at once.

    Args:
        build: from a log density, a place and a key, these for a pilot chain, to ``init(place, key)`` and
            ``step(key, state)``.
    """

    def draw(posterior: Posterior, start: torch.Tensor, num_draws: int, seed: int) -> np.ndarray:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        pilot_key, init_key, key = jax.random.split(jax.random.key(seed), 3)
        init, step = build(posterior.jax(), jnp.asarray(pilot_start(posterior, seed)), pilot_key)

        def transition(states: Any, key: Any) -> tuple[Any, Any]:
            states, _ = jax.vmap(step)(jax.random.split(key, len(start)), states)
            return states, states.position

        @jax.jit
        def chains(starts: Any) -> Any:
            states = jax.vmap(init)(starts, jax.random.split(init_key, len(start)))
            return jax.lax.scan(transition, states, jax.random.split(key, num_draws))[1]

        return np.asarray(chains(start.numpy())).swapaxes(0, 1)

    return draw


def pilot_start(posterior: Posterior, seed: int) -> np.ndarray:
    import torch

    return posterior.sample_prior(1, torch.Generator().manual_seed(seed))[0].numpy()


def blackjax_hmc(log_prob: Any, place: Any, key: Any) -> Built:
    import blackjax
    import jax.numpy as jnp

    hmc = blackjax.hmc(log_prob, STEP_SIZE, jnp.ones(len(place)), NUM_STEPS)
    return lambda place, key: hmc.init(place), hmc.step


def blackjax_nuts(log_prob: Any, place: Any, key: Any) -> Built:
    import blackjax

    (_, parameters), _ = blackjax.window_adaptation(blackjax.nuts, log_prob).run(key, place, PILOT)
    nuts = blackjax.nuts(log_prob, **parameters)
    return lambda place, key: nuts.init(place), nuts.step


def blackjax_mclmc(log_prob: Any, place: Any, key: Any) -> Built:
    import blackjax
    import jax

    kernel, (first, second) = blackjax.mcmc.mclmc.build_kernel(), jax.random.split(key)
    _, found, _ = blackjax.mclmc_find_L_and_step_size(
        mclmc_kernel=kernel,
        num_steps=2 * PILOT,
        state=blackjax.mcmc.mclmc.init(place, log_prob, first),
        rng_key=second,
        logdensity_fn=log_prob,
    )
    mclmc = blackjax.mclmc(
        log_prob, L=found.L, step_size=found.step_size, inverse_mass_matrix=found.inverse_mass_matrix
    )
    return lambda place, key: blackjax.mcmc.mclmc.init(place, log_prob, key), mclmc.step


def blackjax_adjusted(log_prob: Any, place: Any, key: Any) -> Built:
    import blackjax
    import jax
    from blackjax.mcmc.adjusted_mclmc_dynamic import build_kernel, init, make_random_trajectory_length_fn

    kernel = build_kernel(integration_steps_fn=make_random_trajectory_length_fn(random_trajectory_length=True))
    first, second = jax.random.split(key)
    _, found, _ = blackjax.adjusted_mclmc_find_L_and_step_size(
        mclmc_kernel=kernel,
        logdensity_fn=log_prob,
        num_steps=2 * PILOT,
        state=init(place, log_prob, first),
        rng_key=second,
        target=0.9,
    )
    options = {
        "step_size": found.step_size,
        "inverse_mass_matrix": found.inverse_mass_matrix,
        "integration_steps_params": (found.L / found.step_size,),
    }
    return lambda place, key: init(place, log_prob, key), lambda key, state: kernel(key, state, log_prob, **options)


def by_numpyro(name: str) -> Callable[..., Any]:
    """``HMC`` or ``NUTS``, with step size and mass of a pilot chain."""

    def draw(posterior: Posterior, start: torch.Tensor, num_draws: int, seed: int) -> np.ndarray:
        import jax
        import numpyro
        from numpyro import infer

        jax.config.update("jax_enable_x64", True)
        numpyro.set_host_device_count(1)
        log_prob, (pilot_key, key) = posterior.jax(), jax.random.split(jax.random.key(seed))
        options = {} if name == "NUTS" else {"trajectory_length": None, "num_steps": NUM_STEPS}

        def run(key: Any, places: Any, warmup: int, draws: int, **fixed: Any) -> Any:
            kernel = getattr(infer, name)(potential_fn=lambda theta: -log_prob(theta), **options, **fixed)
            many = {"num_chains": len(places), "chain_method": "vectorized"} if places.ndim == 2 else {}
            mcmc = infer.MCMC(kernel, num_warmup=warmup, num_samples=draws, progress_bar=False, **many)
            mcmc.run(key, init_params=places)
            return mcmc

        found = run(pilot_key, pilot_start(posterior, seed), PILOT, 1).last_state.adapt_state
        fixed = {"step_size": float(found.step_size), "inverse_mass_matrix": found.inverse_mass_matrix}
        fixed |= {"adapt_step_size": False, "adapt_mass_matrix": False, "find_heuristic_step_size": False}
        return np.asarray(run(key, start.numpy(), 0, num_draws, **fixed).get_samples(group_by_chain=True))

    return draw


# --- torch ------------------------------------------------------------------------------------------------------------


def pyro_hmc(posterior: Posterior, start: torch.Tensor, num_draws: int, seed: int) -> torch.Tensor:
    """One chain after the other."""
    import pyro
    import torch
    from pyro.infer.mcmc import HMC, MCMC

    pyro.set_rng_seed(seed)
    chains = []
    for place in start:
        kernel = HMC(
            potential_fn=lambda sites: -posterior.log_prob(sites["theta"]),
            step_size=STEP_SIZE,
            num_steps=NUM_STEPS,
            adapt_step_size=False,
            adapt_mass_matrix=False,
        )
        first = {"theta": place}
        mcmc = MCMC(kernel, num_samples=num_draws, warmup_steps=0, initial_params=first, disable_progbar=True)
        mcmc.run()
        chains.append(mcmc.get_samples()["theta"])
    return torch.stack(chains)


def hamiltorch_hmc(posterior: Posterior, start: torch.Tensor, num_draws: int, seed: int) -> torch.Tensor:
    """One chain after the other."""
    import hamiltorch
    import torch

    hamiltorch.set_random_seed(seed)
    settings = {"num_samples": num_draws, "num_steps_per_sample": NUM_STEPS, "step_size": STEP_SIZE}
    chains = [
        hamiltorch.sample(posterior.log_prob, place, burn=-1, verbose=False, **settings)[1:]  # the first is the start
        for place in start
    ]
    return torch.stack([torch.stack(chain) for chain in chains])


# --- NumPy ------------------------------------------------------------------------------------------------------------


def random_walk(
    posterior: Posterior, start: torch.Tensor, num_draws: int, seed: int, forgets: bool = False
) -> np.ndarray:
    """Metropolis'. Where it forgets, it keeps the log density of a place that it refused, as in notebook 14."""
    log_prob, rng = posterior.numpy(), np.random.default_rng(seed)
    theta = start.numpy()
    here, draws = log_prob(theta)[0], []
    for _ in range(num_draws):
        there = theta + STEP_SIZE * rng.standard_normal(theta.shape)
        value = log_prob(there)[0]
        accept = np.log(rng.random(len(theta))) < value - here
        theta, here = np.where(accept[:, None], there, theta), value if forgets else np.where(accept, value, here)
        draws.append(theta)
    return np.stack(draws, axis=1)


def forgetful_walk(posterior: Posterior, start: torch.Tensor, num_draws: int, seed: int) -> np.ndarray:
    return random_walk(posterior, start, num_draws, seed, forgets=True)


OURS = [
    f"HMC({STEP_SIZE}, {NUM_STEPS})",
    "HMC()",
    "NUTS()",
    "ChEES()",
    "MAMS()",
    f"ReplicaExchange(HMC({STEP_SIZE}, {NUM_STEPS}), 6)",
    "MCLMC()",
    "SGLD(0.02, 100)",
]
METHODS = {
    **{name: Method(name, "bnn_utils") for name in OURS},
    "hamiltorch, HMC": Method(hamiltorch_hmc, "hamiltorch", 100, 10),
    "Pyro, HMC": Method(pyro_hmc, "pyro", 100, 10),
    "NumPyro, HMC": Method(by_numpyro("HMC"), "numpyro"),
    "NumPyro, NUTS": Method(by_numpyro("NUTS"), "numpyro", 500, 20),
    "BlackJAX, HMC": Method(by_blackjax(blackjax_hmc), "blackjax"),
    "BlackJAX, NUTS": Method(by_blackjax(blackjax_nuts), "blackjax", 500, 20),
    "BlackJAX, adjusted MCLMC": Method(by_blackjax(blackjax_adjusted), "blackjax"),
    "BlackJAX, MCLMC": Method(by_blackjax(blackjax_mclmc), "blackjax"),
    "random walk in NumPy": Method(random_walk, "numpy"),
    "the same, with a mistake": Method(forgetful_walk, "numpy"),
}
DISTRIBUTIONS = {"bnn_utils": "bnn-utils", "pyro": "pyro-ppl"}


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(method: str) -> list[dict[str, Any]]:
    """In this process: a row for each instrument."""
    import torch

    import bnn_utils
    from bnn_utils.certificates import certify

    torch.set_num_threads(1)
    sampler, package, num_chains, num_draws = METHODS[method]
    made = eval(sampler, vars(bnn_utils)) if isinstance(sampler, str) else sampler
    before = time.process_time()
    found = certify(made, SEED, num_chains, num_draws)
    facts = {
        "version": bnn_utils.__version__ if package == "bnn_utils" else version(DISTRIBUTIONS.get(package, package)),
        "chains": num_chains,
        "draws": num_draws,
        "seconds": time.process_time() - before,
    }
    return [{"method": method} | row | facts for row in found.table().reset_index().to_dict("records")]


def merge(rows: list[dict[str, Any]]) -> None:
    """Into the table that is stored, in place of what was measured before of the same."""
    table = pd.DataFrame(rows)
    if TABLE.exists():
        before = pd.read_csv(TABLE)
        table = pd.concat([before[~before["method"].isin(table["method"])], table])
    order = table["method"].map(list(METHODS).index)
    table = table.iloc[order.argsort(kind="stable")]
    table.to_csv(TABLE, index=False, float_format="%.4g")


def written(p_value: float) -> str:
    return f"{p_value:.2g}" if p_value > 1e-300 else "below 1e-300"


def report() -> None:
    """What is stored, to read."""
    stored = pd.read_csv(TABLE)
    rows = []
    for method, (_, package, *_) in METHODS.items():
        found = stored[stored["method"] == method].set_index("instrument")
        if found.empty:
            missing = "not run" if find_spec(package) else "not installed"
            rows.append({"sampler": method, "version": f"{package}: {missing}"})
            continue
        right = found.drop(index="from the prior")
        worst = right.loc[right["bias"].abs().idxmax()]
        told = {name: ("" if row["passed"] else "**no**, ") + written(row["p_value"]) for name, row in found.iterrows()}
        rows.append(
            {
                "sampler": method,
                "version": f"{package} {worst['version']}",
                "right": "yes" if right["passed"].all() else "**no**",
                **told,
                "largest bias": f"{worst['bias']:+.3f} ± {worst['bias_se']:.3f} ({worst['bias_of']})",
                "chains x draws": f"{worst['chains']:,} x {worst['draws']}",
            }
        )
    (HERE / "certificates.md").write_text(
        PAGE + as_markdown(pd.DataFrame(rows).fillna("")) + f"\nOn {processor_name()}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--stored", action="store_true", help="the page again, of what was run")
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    for method in [] if given.stored else given.only:
        if find_spec(METHODS[method].package) is None:
            print(f"{method} is left out: {METHODS[method].package} is not installed", flush=True)
            continue
        found = json.loads(in_process(__file__, "--one", method))
        print(method, [row["p_value"] for row in found], f"{found[0]['seconds']:.0f} s", flush=True)
        merge(found)
    report()


if __name__ == "__main__":
    main()
