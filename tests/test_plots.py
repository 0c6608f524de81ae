"""Figures, animations and widgets: they draw what they are given, and describe it."""

import io
import itertools
import math

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bnn_utils import HMC, Data, ReplicaExchange, animate, boxes, plots, published_summary, sample, square_grid
from bnn_utils.diagnostics import Convergence, convergence
from bnn_utils.plots import style, tempering
from bnn_utils.predict import split_uncertainty
from bnn_utils.sbc import Calibration


@pytest.fixture
def chain(posterior):
    return sample(posterior, HMC(0.05, 4), num_samples=60, num_chains=3, seed=0, progress=False)


@pytest.fixture
def grid():
    return square_grid(num=9)


@pytest.fixture
def p(posterior, chain, grid):
    return posterior.predict(chain.draws, grid)


UNIFORM = Calibration(torch.arange(320)[:, None] % 16, 15, ["first"])

BAND = torch.tensor([[-1.0, -2.0, -3.0], [0.0, 0.5, 1.0], [1.0, 2.0, 3.0]])
PRICES = pd.DataFrame(
    {
        "problem": ["line", "line", "line", "boxes"],
        "method": ["HMC", "HMC", "MAP", "MAP"],
        "gradients": [1e4, 1e5, 2e3, 3e3],
        "wasserstein": [0.5, 0.1, 0.8, 2.0],
    }
)
SCORES = pd.DataFrame(
    {"method": ["a", "b", "a", "b"], "log score": [-1.0, -2.0, -3.0, -5.0], "accuracy": [0.9, 0.8, 0.7, 0.5]}
)

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
    "uncertainty_map": lambda chain, grid, p, posterior: plots.uncertainty_map(
        split_uncertainty(p).total, grid, posterior.data, title="finding"
    ),
    "trajectories": lambda chain, grid, p, posterior: plots.trajectories(
        torch.rand(4, 5, 2), (torch.arange(4.0), torch.arange(4.0), torch.rand(4, 4)), torch.rand(4, 5), title="finding"
    ),
    "prior_predictive": lambda chain, grid, p, posterior: plots.prior_predictive(p[0], grid, title="finding"),
    "mean_and_disagreement": lambda chain, grid, p, posterior: plots.mean_and_disagreement(
        p, grid, posterior.data, title="finding"
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
    "rhat_maps": lambda chain, grid, p, posterior: plots.rhat_maps(
        {"a": 1 + torch.rand(81), "b": 1 + torch.rand(81)}, grid, posterior.data, title="finding"
    ),
    "convergence_maps": lambda chain, grid, p, posterior: plots.convergence_maps(
        convergence(p, grid), posterior.data, title="finding"
    ),
    "rhat_map": lambda chain, grid, p, posterior: plots.rhat_map(
        1 + torch.rand(81), grid, posterior.data, title="finding"
    ),
    "rhat_weights": lambda chain, grid, p, posterior: plots.rhat_weights(
        {"a": 1 + torch.rand(20), "b": 1 + torch.rand(20)}, chain.names, title="finding"
    ),
    "kinds": lambda chain, grid, p, posterior: plots.kinds(
        {"a": torch.randint(0, 5, (3, 40)), "b": torch.ones(3, 40, dtype=torch.int64)},
        {"AND": 1, "OR": 3},
        title="finding",
    ),
    "ladder": lambda chain, grid, p, posterior: plots.ladder(
        sample(posterior, ReplicaExchange(HMC(0.05, 2), 4), 20, num_chains=2, seed=0, progress=False).tempering,
        title="finding",
    ),
    "energy_slopes": lambda chain, grid, p, posterior: plots.energy_slopes(
        torch.tensor([0.1, 0.2]), {"a": torch.tensor([0.01, 0.04]), "b": torch.tensor([0.1, 0.2])}, title="finding"
    ),
    "calibrations": lambda chain, grid, p, posterior: plots.calibrations(
        {"a": UNIFORM, "b": UNIFORM}, "first", title="finding"
    ),
    "partings": lambda chain, grid, p, posterior: plots.partings(torch.rand(4, 50), 2.0, title="finding"),
    "predictive_bands": lambda chain, grid, p, posterior: plots.predictive_bands(
        {"a": BAND, "b": BAND}, torch.arange(3.0), Data(torch.rand(5, 1), torch.rand(5)), torch.ones(3), title="finding"
    ),
    "scores": lambda chain, grid, p, posterior: plots.scores(SCORES, ["log score", "accuracy"], title="finding"),
    "prices": lambda chain, grid, p, posterior: plots.prices(PRICES, PRICES[:1], title="finding"),
    "answers": lambda chain, grid, p, posterior: plots.answers(
        torch.rand(2, 4, 4), {"a": torch.eye(5)[:2], "b": torch.eye(5)[2:4]}, title="finding"
    ),
    "methods": lambda chain, grid, p, posterior: plots.methods(
        pd.DataFrame({"distance": [0.2, 0.003], "AND": [1.0, 0.5], "OR": [0.0, 0.4]}, index=["a", "b"]),
        ["AND", "OR"],
        title="finding",
    ),
    "watched": lambda chain, grid, p, posterior: plots.watched([0.0, 1.0], [0, 40], p[..., 0], "p", title="finding"),
    "thinning": lambda chain, grid, p, posterior: plots.thinning(
        [1, 10], {"a": torch.tensor([1, 0.9])}, title="finding"
    ),
    "evidence": lambda chain, grid, p, posterior: plots.evidence(
        pd.DataFrame(
            {"network": ["a", "a", "b"], "precision": [0.1, 1, 1], "log_evidence": [-3, -4, -5], "se": [0.1, 0.2, 0.3]}
        ),
        title="finding",
    ),
}


def test_energy_slopes_say_which_slope():
    steps = torch.tensor([0.1, 0.2, 0.4])
    figure = plots.energy_slopes(steps, {"square": 3 * steps**2, "straight": 5 * steps})
    assert [text.get_text() for text in figure.axes[0].texts] == ["slope 2", "slope 1"]


def test_methods_are_in_the_order_of_the_table_and_add_up():
    """One row for each method, the first on top; the kinds and "neither" fill the bar."""
    table = pd.DataFrame({"distance": [0.2, 0.003], "AND": [1.0, 0.5], "OR": [0.0, 0.4]}, index=["worst", "best"])
    left, right = plots.methods(table, ["AND", "OR"]).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["worst", "best"]
    assert left.yaxis.get_inverted()
    np.testing.assert_array_equal(left.lines[0].get_xdata(), table["distance"])
    widths = np.array([[bar.get_width() for bar in bars] for bars in right.containers])
    np.testing.assert_allclose(widths, [[1, 0.5], [0, 0.4], [0, 0.1]], atol=1e-12)
    assert [bars.get_label() for bars in right.containers] == ["AND", "OR", "neither"]


def test_calibrations_draw_the_ranks_that_they_are_given():
    """Bars are counts, the curve is the ECDF minus the uniform one; bands hold what is uniform and not what isn't."""
    high = Calibration(torch.arange(320)[:, None] % 8 + 8, 15, ["first"])
    figure = plots.calibrations({"uniform": UNIFORM, "high": high}, "first")
    for column, expected in ((0, [20] * 16), (1, [0] * 8 + [40] * 8)):
        bars, curve = figure.axes[column], figure.axes[2 + column]
        heights = [bar.get_height() for bar in bars.patches[:16]]
        assert heights == expected
        band = bars.patches[16].get_bbox()
        assert all(band.y0 < height < band.y1 for height in heights) == (column == 0)
        x, y = curve.lines[0].get_data()
        np.testing.assert_allclose(x, np.arange(17) / 16)
        np.testing.assert_allclose(y, np.r_[0, np.cumsum(expected)] / 320 - x, atol=1e-12)
        inside = curve.collections[0].get_paths()[0].contains_points(np.c_[x, y][1:-1], radius=1e-9)
        assert inside.all() == (column == 0)


def test_predictive_bands_are_drawn_where_they_lie():
    data = Data(torch.tensor([[0.0], [2.0]]), torch.tensor([1.0, -1.0]))
    ax, other, *hidden = plots.predictive_bands({"a": BAND, "b": BAND + 1}, torch.arange(3.0)[:, None], data).axes
    assert not hidden
    assert ax.get_title() == "a"
    assert ax.lines[0].get_ydata().tolist() == [0, 0.5, 1]
    assert other.lines[0].get_ydata().tolist() == [1, 1.5, 2]
    corners = set(map(tuple, ax.collections[0].get_paths()[0].vertices.tolist()))
    assert {(0, -1), (2, -3), (0, 1), (2, 3)} <= corners
    assert ax.collections[1].get_offsets().tolist() == [[0, 1], [2, -1]]


def test_scores_draw_every_split_and_the_mean():
    first, second = plots.scores(SCORES, ["log score", "accuracy"]).axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]
    dots, bar, *_ = first.lines
    assert dots.get_xdata().tolist() == [-1, -3]
    assert list(bar.get_xdata()) == [-2, -2]
    np.testing.assert_allclose(second.lines[3].get_xdata(), 0.65)


def test_prices_have_a_panel_for_each_problem_and_a_large_mark_for_each_row_of_ones_own():
    first, second = plots.prices(PRICES, PRICES[-1:]).axes
    assert [ax.get_title() for ax in (first, second)] == ["line", "boxes"]
    chains, end, on = first.lines
    assert chains.get_ydata().tolist() == [0.5, 0.1]
    assert (end.get_linestyle(), list(on.get_xdata())) == ("-", [2e3, 1e5]), "a point goes on as a dotted line"
    *_, own = second.lines
    assert (list(own.get_ydata()), own.get_markersize()) == ([2.0], 10)


def test_answers_stand_below_their_images():
    images = torch.rand(2, 4, 4)
    axes = plots.answers(images, {"a": torch.eye(5)[:2], "b": torch.eye(5)[2:4]}).axes
    for number, (image, chart) in enumerate(zip(axes[:2], axes[2:], strict=True)):
        np.testing.assert_array_equal(image.images[0].get_array(), images[number].numpy())
        assert [line.get_ydata().argmax() for line in chart.lines] == [number, number + 2]


def test_watched_draws_what_was_seen():
    """Counts hold until the next look; long traces keep the numbers of their draws."""
    values = torch.arange(10_000.0).expand(2, -1)
    left, right = plots.watched([0, 1, 2], [0, 0, 7], values, "p").axes
    assert left.lines[0].get_ydata().tolist() == [0, 0, 7]
    assert left.lines[0].get_drawstyle() == "steps-post"
    assert len(right.lines) == 2
    assert len(right.lines[0].get_xdata()) == 2000
    np.testing.assert_array_equal(*right.lines[0].get_data())


def test_thinning_draws_the_memory_beside_what_draws_are_worth():
    first, memory = plots.thinning([1, 10], {"typical": torch.tensor([1, 0.9])}).axes[0].lines
    np.testing.assert_allclose(first.get_ydata(), [1, 0.9], rtol=1e-6)
    np.testing.assert_allclose(memory.get_ydata(), [1, 0.1])


def test_partings_draw_the_median():
    line = plots.partings(torch.tensor([[1.0, 2.0], [3.0, 8.0], [2.0, 4.0]]), 5.0).axes[0].lines[3]
    assert line.get_ydata().tolist() == [2, 4]


def test_kinds_are_drawn_draw_by_draw():
    """Rows are chains; what has no name is the last colour."""
    numbers = torch.tensor([[1, 3, 2, 0], [3, 3, 1, 4]])
    image = plots.kinds({"run": numbers}, {"AND": 1, "OR": 3}).axes[0].images[0]
    assert image.get_array().tolist() == [[0, 1, 2, 2], [1, 1, 0, 2]]


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


# Machado et al. 2009, for those who see no green: from linear red, green and blue to what they look like.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def lab(colour, seen=DEUTERANOPIA):
    """A colour as seen, in CIELAB: lightness from 0 to 100, and two opponent hues."""
    srgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4) @ seen.T
    xyz = linear.clip(0, 1) @ [[0.4339, 0.2126, 0.0177], [0.3762, 0.7152, 0.1095], [0.1899, 0.0722, 0.8728]]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("palette", [style.CHAIN_COLOURS, tempering.KIND_COLOURS, style.PROBABILITY_MAP([0.0, 1.0])])
def test_colours_differ_to_the_colour_blind_and_in_grey(palette):
    """Fails with the reddish purple of Okabe and Ito in place of brown, and with Matplotlib's RdBu."""
    for one, other in itertools.combinations(palette, 2):
        assert np.linalg.norm(lab(one) - lab(other)) > 20
        assert abs(lab(one, seen=np.eye(3)) - lab(other, seen=np.eye(3)))[0] > 10, (
            "lightness, which is what print keeps"
        )


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


def colour_at(figure, ax, x, y):
    """Red, green and blue of the picture at a point in the coordinates of one of its axes."""
    image = np.asarray(Image.open(io.BytesIO(figure.png())).convert("RGB")).astype(int)
    column, row = ax.transData.transform((x, y)).round().astype(int)
    return image[len(image) - row, column]


def rhat_colours(*values, grid):
    """Of maps of one value each, away from points and marks."""
    figure = plots.rhat_maps({str(value): torch.full((81,), value) for value in values}, grid, boxes())
    return [colour_at(figure, ax, 5.5, -5.7) for ax in figure.axes[: len(values)]]


def test_rhat_has_one_scale_in_all_figures(grid):
    """Fails when the scale runs to the largest value: next to 1.3, 1.015 would look like 1."""
    (alone,) = rhat_colours(1.015, grid=grid)
    good, beside, bad, infinite = rhat_colours(1.004, 1.015, 1.3, math.inf, grid=grid)
    assert (alone == beside).all()
    assert abs(beside - good).max() > 60
    assert good.sum() > beside.sum() > bad.sum(), "dark is bad"
    assert (bad == infinite).all()


def test_dark_is_bad_in_every_panel_of_convergence_maps(grid):
    ones = torch.ones(81)
    good = plots.convergence_maps(Convergence(grid, 4, 1.002 * ones, 2000 * ones, 2000 * ones, ones), boxes())
    bad = plots.convergence_maps(Convergence(grid, 4, 1.15 * ones, 40 * ones, 40 * ones, ones), boxes())
    for k in range(3):
        light, dark = (colour_at(figure, figure.axes[k], 5.5, -5.7) for figure in (good, bad))
        assert light.sum() > dark.sum() + 200
    colours = [colour_at(bad, ax, 5.5, -5.7).tolist() for ax in bad.axes[:3]]
    assert colours[0] == colours[1] == colours[2], "R-hat 1.15 is as bad as ESS 40"


def test_convergence_maps_mark_the_worst_place_and_the_limit(grid):
    r_hat, bulk, tail = torch.full((81,), 1.002), torch.full((81,), 5000.0), torch.full((81,), 5000.0)
    r_hat[10], bulk[20], tail[30] = 1.3, 100, 399
    r_hat[80] = bulk[80] = tail[80] = torch.nan
    figure = plots.convergence_maps(Convergence(grid, 4, r_hat, bulk, tail, r_hat), boxes())
    for ax, worst, limit in zip(figure.axes, (10, 20, 30), (1.01, 400, 400), strict=False):
        (star,) = (line for line in ax.lines if line.get_label() == "worst point")
        assert [float(x) for (x,) in star.get_data()] == grid[worst].tolist()
        assert [limit] in [list(drawn.levels) for drawn in ax.collections if hasattr(drawn, "levels")]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["worst point", "prediction never changed", "class 1", "class 0"]


def test_maps_of_predictions_that_never_changed(grid):
    """Grey all over, without a warning."""
    nothing = torch.full((81,), torch.nan)
    figure = plots.convergence_maps(Convergence(grid, 4, nothing, nothing, nothing, nothing), boxes())
    assert colour_at(figure, figure.axes[0], 5.5, -5.7).tolist() == [204, 204, 204]


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
    with pytest.raises(ValueError, match="there are 3 frames and 1 titles"):
        animate.contours(p[0, :3], grid, posterior.data, ["only one title"], alt="")


def test_pictures_show_in_notebooks_that_trust_nothing():
    bundle = plots.image_bundle(b"bytes", "gif", 'a "quoted" <description>')
    assert bundle["text/html"].startswith('<img src="data:image/gif;base64,')
    assert "&quot;quoted&quot; &lt;description&gt;" in bundle["text/html"]
    assert "description" in bundle["text/plain"]
