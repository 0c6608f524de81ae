"""What all explorers share: controls above a picture, which another thread draws anew when a control moves."""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets
import torch
from torch import Tensor

from bnn_utils.data import square_grid
from bnn_utils.plots import Figure
from bnn_utils.posterior import Posterior

# A picture that a newer request has overtaken is not shown, but where requests keep coming, as from a slider that is
# dragged on and on, one is shown after this many seconds all the same.
PATIENCE = 0.5


class Explorer(ipywidgets.VBox):
    """Controls, a picture and a line of status; where no kernel runs, a line of text.

    The first picture is drawn at once. Whenever a control moves later, a thread in the background draws the next one,
    so that moving a control never waits. Only the latest request counts: those that wait are replaced by it, and a
    picture that is outdated when it is done isn't shown. An error is put into the status in words, the picture stays,
    and the next request that succeeds replaces it.

    Args:
        controls: name -> widget with a ``value``; their values are passed to ``work`` under these names.
        work: makes a figure and a status from the values of the controls, in any thread.
        still: the same for `figure`, where ``work`` draws on one figure again and again.
        arranged: the controls as they are shown; without it, one below the other.
        beside: whether they are left of the picture, where there is room, or above it.
    """

    def __init__(
        self,
        controls: Mapping[str, ipywidgets.ValueWidget],
        work: Callable[..., tuple[Figure, str]],
        still: Callable[..., tuple[Figure, str]] | None = None,
        arranged: Sequence[ipywidgets.Widget] | None = None,
        beside: bool = False,
    ) -> None:
        self.controls = dict(controls)
        self.image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width="fit-content", max_width="100%"))
        self.status = ipywidgets.HTML()
        self._work, self._still = work, still or work
        self._changed = threading.Condition()
        self._waiting: dict[str, Any] | None = None
        self._is_working = False
        shown = list(self.controls.values() if arranged is None else arranged)
        if beside:
            columns = [ipywidgets.VBox(shown), ipywidgets.VBox([self.image, self.status])]
            super().__init__([ipywidgets.HBox(columns, layout=ipywidgets.Layout(flex_flow="row wrap"))])
        else:
            super().__init__([*shown, self.image, self.status])
        figure, status = work(**self._values())
        self._show(status, figure.png())
        for control in self.controls.values():
            control.observe(self._request, names="value")

    def figure(self, **values: Any) -> Figure:
        """The picture with the controls as they are, but for those whose values are given; nothing is moved."""
        return self._still(**self._values() | values)[0]

    def wait(self, timeout: float = 60.0) -> None:
        """Return when all that was asked for is shown.

        Raises:
            TimeoutError: if that takes more than ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._is_working, timeout):
                raise TimeoutError(f"the picture is not done after {timeout:g} s; wait longer, or ask for less")

    def _values(self) -> dict[str, Any]:
        return {name: control.value for name, control in self.controls.items()}

    def _request(self, change: dict[str, Any]) -> None:
        with self._changed:
            self._waiting = self._values()
            if not self._is_working:
                self._is_working = True
                # It ends when nothing waits, so an idle explorer has none. No daemon: torch aborts in a thread that the
                # interpreter leaves behind when it ends.
                threading.Thread(target=self._serve, name="explorer").start()

    def _serve(self) -> None:
        while (values := self._next()) is not None:
            try:
                figure, status = self._work(**values)
                png = figure.png()
            except Exception as error:
                png, status = None, f"That did not work ({type(error).__name__}: {error}). The picture is older."
            with self._changed:
                is_outdated = self._waiting is not None
            if not is_outdated or (png is not None and time.monotonic() - self._shown_at > PATIENCE):
                self._show(status, png)

    def _next(self) -> dict[str, Any] | None:
        with self._changed:
            values, self._waiting = self._waiting, None
            if values is None:
                self._is_working = False
                self._changed.notify_all()
            return values

    def _show(self, status: str, png: bytes | None) -> None:
        if png is not None:
            self.image.value = png
        self.status.value = html.escape(status)
        self._shown_at = time.monotonic()

    def __repr__(self) -> str:
        return "(Controls and a picture: they need a running kernel.)"


def check_plane(posterior: Posterior) -> None:
    """Raise a ValueError unless the posterior's predictions are maps of a plane, of one data set."""
    shape = tuple(posterior.data.x.shape)
    if len(shape) != 2 or shape[1] != 2:
        raise ValueError(
            f"this explorer draws maps of the plane and needs inputs of shape (N, 2), but this posterior's inputs have "
            f"shape {shape}: fix all inputs but two, or look at posterior.predict(draws, x) at points x of your own"
        )
    if posterior.num_datasets > 1:
        raise ValueError(
            f"this posterior is one of {posterior.num_datasets} data sets: explore one of them, posterior.dataset(k)"
        )


def around(x: Tensor) -> Tensor:
    """A grid of 25 times 25 points over the square that holds all inputs ``(N, 2)`` and some ground around them."""
    return square_grid(25, limit=max(1.0, float(torch.ceil(1.1 * x.abs().max()))), like=x)
