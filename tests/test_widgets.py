"""Explorers react, show the latest request only, say errors in words, and take points by mouse and by keys."""

import subprocess
import sys
import threading

import ipywidgets
import pytest
import torch
from matplotlib.backend_bases import KeyEvent, MouseEvent
from scipy.stats import norm

from bnn_utils import HMC, Data, boxes, plots, sample, square_grid, widgets
from bnn_utils.kernels.base import Info
from bnn_utils.predict import predictive_mean, split_uncertainty
from bnn_utils.widgets import data as of_data
from bnn_utils.widgets import explorer as of_explorer
from bnn_utils.widgets import posterior as of_posterior
from bnn_utils.widgets import prior as of_prior
from bnn_utils.widgets import sampler as of_sampler


@pytest.fixture
def chain(posterior):
    return sample(posterior, HMC(0.05, 4), num_samples=60, num_chains=3, seed=0, progress=False)


@pytest.fixture
def quick(monkeypatch):
    """Short runs: what is drawn does not matter."""
    monkeypatch.setattr(of_sampler, "NUM_TRANSITIONS", 8)
    monkeypatch.setattr(of_sampler, "WALK", 20)
    monkeypatch.setattr(of_data, "NUM_DRAWS", 6)
    monkeypatch.setattr(of_data, "THIN", 1)
    monkeypatch.setattr(of_data, "WARMUP", 10)


class Work:
    """Draws the number that it is given; a negative one is an error; can be held up."""

    def __init__(self):
        self.asked, self.free = [], threading.Event()
        self.begun = threading.Semaphore(0)
        self.free.set()

    def __call__(self, number):
        self.asked.append(number)
        self.begun.release()
        assert self.free.wait(10)
        if number < 0:
            raise ValueError(f"{number} < 0")
        figure = plots.Figure(figsize=(1, 1), alt=f"the number {number}")
        figure.text(0.5, 0.5, str(number))
        return figure, f"number {number}"


@pytest.fixture
def work():
    return Work()


@pytest.fixture
def explorer(work):
    return widgets.Explorer({"number": ipywidgets.IntSlider(min=-9, max=9)}, work)


def move(explorer, name, value):
    """Move a control and wait for the picture, which must be another one."""
    before = bytes(explorer.image.value)
    explorer.controls[name].value = value
    explorer.wait()
    after = bytes(explorer.image.value)
    assert after.startswith(b"\x89PNG")
    assert after != before, f"{name} = {value} changes nothing"


def test_first_picture_is_there_at_once(explorer, work):
    assert work.asked == [0]
    assert bytes(explorer.image.value).startswith(b"\x89PNG")
    assert explorer.status.value == "number 0"
    assert "need a running kernel" in repr(explorer)


def hold_up(explorer, work):
    """Three requests, of which the first is in work and the second is waiting when the third comes."""
    work.free.clear()
    explorer.controls["number"].value = 1
    assert work.begun.acquire(timeout=10)  # the first picture's
    assert work.begun.acquire(timeout=10)
    explorer.controls["number"].value = 2
    explorer.controls["number"].value = 3
    shown = []
    explorer.status.observe(lambda change: shown.append(change["new"]), names="value")
    work.free.set()
    explorer.wait()
    return shown


def test_latest_request_wins(explorer, work, monkeypatch):
    """Fails when requests are queued, and when a picture that was overtaken is shown."""
    monkeypatch.setattr(of_explorer, "PATIENCE", 1e9)
    assert hold_up(explorer, work) == ["number 3"]
    assert work.asked == [0, 1, 3]
    assert explorer.status.value == "number 3"


def test_pictures_go_on_while_requests_keep_coming(explorer, work, monkeypatch):
    """Fails when an overtaken picture is never shown: a slider that plays would show none."""
    monkeypatch.setattr(of_explorer, "PATIENCE", 0.0)
    assert hold_up(explorer, work) == ["number 1", "number 3"]


def test_moving_a_control_does_not_wait(explorer, work):
    work.free.clear()
    explorer.controls["number"].value = 1
    with pytest.raises(TimeoutError, match=r"after 0\.01 s"):
        explorer.wait(0.01)
    assert explorer.status.value == "number 0"
    work.free.set()
    explorer.wait()
    assert explorer.status.value == "number 1"


def test_errors_are_said_and_the_next_request_clears_them(explorer):
    picture = bytes(explorer.image.value)
    explorer.controls["number"].value = -3
    explorer.wait()
    assert "ValueError: -3 &lt; 0" in explorer.status.value
    assert bytes(explorer.image.value) == picture
    move(explorer, "number", 4)
    assert explorer.status.value == "number 4"


def test_an_idle_explorer_has_no_thread(explorer):
    for number in range(1, 6):
        move(explorer, "number", number)
    for thread in threading.enumerate():
        if thread.name == "explorer":
            thread.join(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "explorer"]


def test_figure_of_other_values_moves_nothing(explorer):
    assert explorer.figure(number=7).alt == "the number 7"
    assert explorer.figure().alt == "the number 0"
    assert explorer.status.value == "number 0"


def test_posterior_explorer_reacts(chain, posterior):
    explorer = widgets.posterior_explorer(chain, posterior, square_grid(9))
    for view in of_posterior.VIEWS[1:]:
        move(explorer, "view", view)
        move(explorer, "draw", (explorer.controls["draw"].value + 17) % 60)
    move(explorer, "number", 2)
    assert "of 60, log density" in explorer.status.value


def test_posterior_explorer_compares_runs(chain, posterior):
    """The controls fit the run that is chosen, also where it is shorter than the one before."""
    short = sample(posterior, HMC(0.05, 4), num_samples=5, seed=1, progress=False)
    explorer = widgets.posterior_explorer({"long": chain, "short": short}, posterior, square_grid(9))
    move(explorer, "number", 2)
    move(explorer, "draw", 59)
    move(explorer, "run", "short")
    assert (explorer.controls["number"].value, explorer.controls["draw"].value) == (0, 4)
    assert explorer.status.value.startswith(f"draw 5 of 5, log density {short.stats['lp'][0, 4]:.1f}")


def test_kept_predictions_are_those_of_predict(chain, posterior):
    """Fails when a running mean is off by one draw."""
    p = posterior.predict(chain.draws[1], square_grid(9))
    kept = of_posterior.Predictions.of(p)
    for draw in (0, 1, 59):
        so_far = p[: draw + 1]
        split = split_uncertainty(so_far)
        for mine, expected in zip(kept, (p[draw], predictive_mean(so_far), split.aleatoric), strict=True):
            torch.testing.assert_close(mine[draw].double(), expected, rtol=0, atol=1e-6)


def test_moving_the_slider_predicts_nothing(chain, posterior, monkeypatch):
    explorer = widgets.posterior_explorer(chain, posterior, square_grid(9))
    monkeypatch.setattr(posterior, "predict", None)
    move(explorer, "draw", 30)
    move(explorer, "view", "running mean")


@pytest.mark.usefixtures("quick")
def test_sampler_explorer_reacts(posterior):
    explorer = widgets.sampler_explorer(posterior)
    move(explorer, "step_size", 0.01)
    assert "0 divergences" in explorer.status.value
    move(explorer, "num_steps", 9)
    move(explorer, "step_size", 1.0)
    assert "0% accepted" in explorer.status.value


def test_paths_are_those_of_the_sampler(posterior):
    """The picture's leapfrog ends where HMC's proposal ends, with HMC's energy error."""
    start = posterior.sample_prior(1, torch.Generator().manual_seed(3))[0]
    paths = of_sampler.roll(posterior, start, 0.01, 5, seed=7)
    kernel = HMC(0.01, 5)
    density = posterior.density(of_sampler.NUM_PATHS)
    state = kernel.init(density, start.repeat(of_sampler.NUM_PATHS, 1), 0)
    _, info = kernel.step(density, torch.Generator().manual_seed(7), state)
    torch.testing.assert_close(paths.energy_error[:, -1], Info.stack([info]).stats["energy_error"][:, 0])
    assert paths.theta.shape == (4, 6, 20)
    assert (paths.theta[:, 0] == start).all()


def test_plane_holds_the_log_density(posterior, theta):
    plane = of_sampler.slice_through(posterior, theta[0], seed=0)
    place = theta[0] + plane.u[5] * plane.directions[0] + plane.v[50] * plane.directions[1]
    torch.testing.assert_close(plane.log_prob[50, 5], posterior.log_prob(place))


@pytest.mark.usefixtures("quick")
def test_prior_explorer_reacts():
    explorer = widgets.prior_explorer()
    for name, value in (("precision", 1.0), ("width", 20), ("activation", "ReLU")):
        move(explorer, name, value)


@pytest.mark.statistical
def test_prior_predictions_spread_as_the_prior_does():
    """Far out all units of the first layer are -1 or 1, which makes the variance of the logits a known one."""
    precision, width = 4.0, 60
    far = torch.full((1, 2), 1e6, dtype=torch.float64)
    seeds = range(20)
    p = torch.cat([of_prior.predictions(precision, width, "tanh", far, seed) for seed in seeds]).flatten()
    logits = torch.logit(p)
    second_layer = torch.tanh(torch.randn(10**6, generator=torch.Generator().manual_seed(0)) * (61 / precision) ** 0.5)
    expected = (1 + width * second_layer.square().mean().double()) / precision
    # The variance of 4,000 values of a normal has a relative standard error of sqrt(2 / 4000). False alarm 1e-4.
    assert abs(logits.var() / expected - 1) < norm.isf(1e-4 / 2) * (2 / 4000) ** 0.5


@pytest.fixture
def drawing(quick):
    return widgets.data_explorer(Data(torch.tensor([[2.0, 2.0], [-3.0, 1.0]]), torch.tensor([1.0, 0.0])))


def mouse(pad, kind, place, button=1, dblclick=False):
    x, y = pad.canvas.figure.axes[0].transData.transform(place)
    MouseEvent(kind, pad.canvas, x, y, button, dblclick=dblclick)._process()


def click(pad, place, button=1, dblclick=False):
    mouse(pad, "button_press_event", place, button, dblclick)
    mouse(pad, "button_release_event", place, button)


def press(pad, *keys):
    for key in keys:
        KeyEvent("key_press_event", pad.canvas, key)._process()


def rounded(points):
    return [(round(x1, 6), round(x2, 6), label) for x1, x2, label in points]


FIRST = [(2.0, 2.0, 1), (-3.0, 1.0, 0)]


def test_a_picture_over_another_is_as_alone(drawing):
    """Fails when something of the picture before stays, or the frame moves; and figures that were given change."""
    kept = drawing.figure()
    before = kept.png()
    for points in ((*FIRST, (5.0, -5.0, 1)), (), tuple(FIRST)):
        drawing.controls["points"].value = points
        drawing.wait()
    assert drawing.image.value == before == kept.png()
    drawing.controls["points"].value = ()
    drawing.wait()
    assert drawing.image.value == drawing.figure().png() != before


def test_points_by_mouse(drawing):
    pad = drawing.controls["points"]
    picture = bytes(drawing.image.value)
    click(pad, (1, -4))
    assert rounded(pad.value) == [*FIRST, (1.0, -4.0, 1)]
    drawing.wait()
    assert bytes(drawing.image.value) != picture

    pad.label.value = 0
    click(pad, (-5, -5))
    assert rounded(pad.value)[-1] == (-5.0, -5.0, 0)

    mouse(pad, "button_press_event", (2.1, 1.9))
    mouse(pad, "motion_notify_event", (3, 3))
    mouse(pad, "motion_notify_event", (4, 4.5))
    mouse(pad, "button_release_event", (4, 4.5))
    mouse(pad, "motion_notify_event", (0, 0))
    assert rounded(pad.value)[0] == (4.0, 4.5, 1), "it was dragged, and stays once it is let go"

    click(pad, (-5, -4.9), button=3)
    click(pad, (1, -4), dblclick=True)
    assert rounded(pad.value) == [(4.0, 4.5, 1), (-3.0, 1.0, 0)]
    click(pad, (0, 0), button=3)
    assert len(pad.value) == 2, "nothing is within reach"
    drawing.wait()


def test_undo_takes_back_one_change_at_a_time(drawing):
    pad = drawing.controls["points"]
    click(pad, (1, -4))
    mouse(pad, "button_press_event", (1, -4))
    for x in (2, 3, 4):
        mouse(pad, "motion_notify_event", (x, -4))
    mouse(pad, "button_release_event", (4, -4))
    click(pad, (4, -4))
    assert rounded(pad.value)[-1] == (4.0, -4.0, 1)
    pad.undo()
    assert rounded(pad.value)[-1] == (1.0, -4.0, 1), "a drag is one change, and a click on a point is none"
    pad.undo()
    pad.undo()
    assert rounded(pad.value) == FIRST
    drawing.wait()


def test_points_by_keys(drawing):
    """The cross starts in the middle, and what it does is also said in words."""
    pad = drawing.controls["points"]
    press(pad, "right", "right", "down", " ")
    assert pad.value[-1] == (0.5, -0.25, 1)
    press(pad, "left", "up", "0")
    assert pad.value[-1] == (0.25, 0.0, 0)
    assert "Cross at (0.25, 0.00). Points: 2 of class 1, 2 of class 0." in pad.where.value
    press(pad, *["right"] * 40, "delete")
    assert pad.cross == (6.0, 0.0)
    assert len(pad.value) == 3
    assert (2.0, 2.0, 1) not in pad.value, "the nearest is gone"
    drawing.wait()


def test_escape_takes_the_focus_away_and_gives_the_picture_back(drawing):
    """A browser takes the focus from what is hidden; Tab would never get out of an ipympl canvas otherwise."""
    pad = drawing.controls["points"]
    seen, is_back = [], threading.Event()

    def note(change):
        seen.append(change["new"])
        if change["new"] == "visible":
            is_back.set()

    pad.canvas.layout.observe(note, names="visibility")
    press(pad, "escape")
    assert is_back.wait(10)
    assert seen == ["hidden", "visible"]


def test_no_points_and_one_class(drawing):
    _, undo, clear = drawing.controls["points"].children[0].children
    clear.click()
    drawing.wait()
    assert "drawn from the prior" in drawing.status.value
    press(drawing.controls["points"], "1", "right", "1")
    drawing.wait()
    assert "All points are of class 1" in drawing.status.value
    for _ in range(3):
        undo.click()
    drawing.wait()
    assert rounded(drawing.controls["points"].value) == FIRST
    assert "384 draws of 64 chains" in drawing.status.value


def test_resample_draws_other_chains(drawing):
    (columns,) = drawing.children
    *_, again = columns.children[0].children[1].children
    picture = bytes(drawing.image.value)
    again.click()
    drawing.wait()
    assert bytes(drawing.image.value) != picture
    assert drawing.controls["seed"].value == 1


@pytest.mark.statistical
def test_draws_without_points_are_the_prior(net):
    """Fails when the point that stands in for none is taken seriously. False alarm below 1e-4 for independent draws."""
    x = square_grid(3)
    p = of_data.draw(net, (), x, seed=0)
    assert p.shape == (64, 25, 9)
    assert abs(p.mean() - 0.5) < 4 * 0.5 / 1600**0.5


def test_ipympl_does_not_take_over_other_figures():
    """Its import makes it the backend of all figures, unless that is prevented."""
    code = (
        "import matplotlib; matplotlib.use('agg'); import matplotlib.pyplot as plt; from bnn_utils import widgets;"
        "widgets.data_explorer(); assert matplotlib.get_backend() == 'agg';"
        "assert type(plt.figure().canvas).__name__ == 'FigureCanvasAgg'"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_inputs_that_are_no_plane(chain, make_posterior):
    deep = torch.nn.Linear(5, 1)
    other = make_posterior(deep, Data(torch.rand(10, 5), torch.ones(10)))
    with pytest.raises(
        ValueError, match=r"needs inputs of shape \(N, 2\), but this posterior's inputs have shape \(10, 5"
    ):
        widgets.posterior_explorer(chain, other)
    with pytest.raises(ValueError, match=r"of shape \(N, 2\), but these have shape \(10, 5\)"):
        widgets.data_explorer(other.data)


def test_what_else_cannot_be_explored(chain, posterior):
    many = posterior.with_targets(torch.stack([posterior.data.y, 1 - posterior.data.y]))
    with pytest.raises(ValueError, match=r"2 data sets: explore one of them, posterior\.dataset\(k\)"):
        widgets.posterior_explorer(chain, many)
    with pytest.raises(ValueError, match="no chain to look at"):
        widgets.posterior_explorer({}, posterior)
    with pytest.raises(ValueError, match="this network has 20 parameters"):
        widgets.sampler_explorer(posterior, start=torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"one vector, of shape \(20,\), but got \(4, 20\)"):
        widgets.sampler_explorer(posterior, start=torch.zeros(4, 20))
    with pytest.raises(ValueError, match="log density at start is -inf"):
        widgets.sampler_explorer(posterior, start=torch.full((20,), 1e200, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"one is at .*: rescale the inputs"):
        widgets.data_explorer(Data(10 * boxes().x, boxes().y))
    with pytest.raises(ValueError, match="y holds 2"):
        widgets.data_explorer(Data(boxes().x, 2 * boxes().y))
