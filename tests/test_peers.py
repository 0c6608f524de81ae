"""Notebook 10's table of methods: rows whose package is missing are left out, in words."""

import sys
from pathlib import Path

import jupytext
import pytest
import torch

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "10_one_vector_many_packages.py"


@pytest.fixture(scope="module")
def notebook():
    """The names of the notebook once its functions are defined, before anything is run."""
    namespace, threads = {}, torch.get_num_threads()
    cells = [cell.source for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"]
    (last,) = [number for number, source in enumerate(cells) if "def installed" in source]
    for source in cells[: last + 1]:
        exec(compile(source, NOTEBOOK.name, "exec"), namespace)
    yield namespace
    # As it was before the notebook:
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_enable_x64", False)
    torch.set_num_threads(threads)


@pytest.fixture
def model(notebook):
    return notebook["Counted"](
        notebook["net"], notebook["data"], notebook["NormalPrior"](0.09), notebook["Bernoulli"]()
    )


def test_missing_packages_are_left_out_in_words(notebook, monkeypatch, capsys):
    there = {"scipy", "torch", "bnn_utils", "emcee"}
    monkeypatch.setitem(notebook, "find_spec", lambda name: name if name in there else None)
    runs = notebook["installed"](notebook["METHODS"])
    expected = {name: run for name, (needs, run) in notebook["METHODS"].items() if needs in there}
    assert runs == expected
    assert 5 < len(runs) < len(notebook["METHODS"])
    assert capsys.readouterr().out == "left out, because not installed: blackjax, hamiltorch, numpyro, nutpie\n"


def test_nothing_is_said_when_all_are_there(notebook, monkeypatch, capsys):
    monkeypatch.setitem(notebook, "find_spec", lambda name: name)
    assert len(notebook["installed"](notebook["METHODS"])) == len(notebook["METHODS"])
    assert capsys.readouterr().out == ""


def test_counter_counts_vectors(notebook, model):
    """Through every door: one vector is one evaluation, a batch is as many as it has rows."""
    theta = notebook["starts"](model, 7)
    for call, count in (
        (lambda: model.log_prob(theta), 7),
        (lambda: model.log_prob_and_grad(theta), 7),
        (lambda: model.numpy()(theta[0].numpy()), 1),
    ):
        before = model.evaluations
        call()
        assert model.evaluations - before == count
    before = model.evaluations
    notebook["sample"](model, notebook["HMC"](0.05, 4), 10, num_chains=3, init=theta[:3], progress=False)
    assert model.evaluations - before in range(3 * 4 * 10, 3 * 4 * 10 + 7), "and one at each start, twice at most"
    before = model.evaluations
    kernel = notebook["ReplicaExchange"](notebook["HMC"](0.05, 4), 5)
    notebook["sample"](model, kernel, 10, num_chains=3, init=theta[:3], progress=False)
    assert model.evaluations - before in range(15 * 4 * 10, 15 * 4 * 10 + 19)


def test_counter_counts_what_jax_asks_for(notebook, model):
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    rows = notebook["starts"](model, 7).numpy()
    jax.block_until_ready(jax.jit(jax.vmap(jax.value_and_grad(model.jax())))(rows))
    assert model.evaluations == 7
