"""Figures, animations and widgets: they draw what they are given, and describe it."""

import io

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image

from bnn_utils import HMC, animate, boxes, plots, published_summary, sample, square_grid, widgets
from bnn_utils.predict import split_uncertainty


@pytest.fixture
def chain(posterior):
    return sample(posterior, HMC(0.05, 4), num_samples=60, num_chains=3, seed=0, progress=False)


@pytest.fixture
def grid():
    return square_grid(num=9)


@pytest.fixture
def p(posterior, chain, grid):
    return posterior.predict(chain.draws, grid)


FIGURES = {
    "points": lambda chain, grid, p, posterior: plots.points(posterior.data, title="finding"),
    "parameter_layout": lambda chain, grid, p, posterior: plots.parameter_layout(
        posterior.flat, chain.draws[0, 0], title="finding"
    ),
    "decision_maps": lambda chain, grid, p, posterior: plots.decision_maps(
        {"a": p[0, 0], "b": p[0, 1]}, grid, posterior.data, title="finding"
    ),
    "uncertainty_maps": lambda chain, grid, p, posterior: plots.uncertainty_maps(
        split_uncertainty(p), grid, posterior.data, title="finding"
    ),
    "trajectory": lambda chain, grid, p, posterior: plots.trajectory(
        torch.rand(5, 2),
        (torch.arange(4.0), torch.arange(4.0), torch.rand(4, 4)),
        {"e": torch.rand(5)},
        title="finding",
    ),
    "against_published": lambda chain, grid, p, posterior: plots.against_published(
        chain.summary(), published_summary(), title="finding"
    ),
    "traces": lambda chain, grid, p, posterior: plots.traces(chain, [0, 3], title="finding"),
    "ranks": lambda chain, grid, p, posterior: plots.ranks(chain.draws[..., :2], ["a", "b"], title="finding"),
    "autocorrelations": lambda chain, grid, p, posterior: plots.autocorrelations(
        chain.draws[..., :2], ["a", "b"], max_lag=30, title="finding"
    ),
    "energies": lambda chain, grid, p, posterior: plots.energies(chain, starts=10, title="finding"),
    "rhat_comparison": lambda chain, grid, p, posterior: plots.rhat_comparison(
        1 + torch.rand(20), 1 + torch.rand(81), title="finding"
    ),
    "rhat_map": lambda chain, grid, p, posterior: plots.rhat_map(
        1 + torch.rand(81), grid, posterior.data, title="finding"
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_carry_title_labels_and_alternative_text(name, chain, grid, p, posterior):
    figure = FIGURES[name](chain, grid, p, posterior)
    assert figure.get_suptitle() == "finding"
    assert figure.alt.endswith("finding")
    assert len(figure.alt) > len("finding") + 10
    image = np.asarray(Image.open(io.BytesIO(figure.png())).convert("RGB"))
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20, "an empty picture"


def test_classes_differ_by_shape_and_colour():
    ax = plots.points(boxes()).axes[0]
    one, zero = ax.collections
    assert one.get_offsets().shape == zero.get_offsets().shape == (40, 2)
    assert len(one.get_paths()[0].vertices) != len(zero.get_paths()[0].vertices)
    assert not np.array_equal(one.get_facecolor(), zero.get_facecolor())


def test_rank_bars_average_to_one():
    draws = torch.randn(3, 60, 1, generator=torch.Generator().manual_seed(0))
    figure = plots.ranks(draws, ["a"], bins=10)
    heights = np.array([[bar.get_height() for bar in ax.patches] for ax in figure.axes])
    np.testing.assert_allclose(heights.mean(axis=1), 1)  # each chain holds as many ranks as draws
    np.testing.assert_allclose(heights.mean(axis=0), 1)  # and each rank belongs to one chain


def test_autocorrelation_against_the_definition():
    """An AR(1) process with coefficient 0.5 has autocorrelation 0.5^lag."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 20_000, generator=generator, dtype=torch.float64)
    x = torch.zeros_like(noise)
    for t in range(1, noise.shape[1]):
        x[:, t] = 0.5 * x[:, t - 1] + noise[:, t]
    line = plots.autocorrelations(x[..., None], ["x"], max_lag=6).axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(line, 0.5 ** np.arange(6), atol=0.03)


def test_maps_refuse_what_is_no_square_grid(posterior):
    with pytest.raises(ValueError, match="square grid"):
        plots.decision_maps({"a": torch.rand(80)}, torch.rand(80, 2))


def test_animation_is_a_small_gif_of_all_frames(p, grid, posterior, tmp_path):
    animation = animate.contours(p[0, ::20], grid, posterior.data, ["a", "b", "c"], alt="moving contours")
    animation.save(tmp_path / "results.gif")
    with Image.open(tmp_path / "results.gif") as image:
        assert image.format == "GIF"
        assert image.n_frames == 3
    assert len(animation.gif) < 200_000
    with pytest.raises(ValueError, match="shorter"):
        animate.contours(p[0, :3], grid, posterior.data, ["only one title"], alt="")


def test_pictures_show_in_notebooks_that_trust_nothing():
    bundle = plots.image_bundle(b"bytes", "gif", 'a "quoted" <description>')
    assert bundle["text/html"].startswith('<img src="data:image/gif;base64,')
    assert "&quot;quoted&quot; &lt;description&gt;" in bundle["text/html"]
    assert "description" in bundle["text/plain"]


def test_slider_redraws(chain, posterior, grid):
    box = widgets.draw_slider(chain, posterior, grid, step=1)
    slider, image = box.children
    assert isinstance(slider, ipywidgets.IntSlider)
    assert "need a running kernel" in repr(box)
    before = bytes(image.value)
    slider.value = 40
    assert bytes(image.value).startswith(b"\x89PNG")
    assert bytes(image.value) != before
