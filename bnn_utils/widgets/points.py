"""A canvas on which points are added, moved and removed, by mouse or by keys."""

from __future__ import annotations

import math
import threading
import warnings
from unittest import mock

import ipywidgets
import traitlets
from matplotlib.backend_bases import KeyEvent, LocationEvent, MouseButton, MouseEvent

from bnn_utils.plots import Figure, editable_points

Point = tuple[float, float, int]  # x1, x2, class

REACH = 0.35  # how near to a point a click must be to mean it
STEP = 0.25  # of the cross, for each press of an arrow key
ARROWS = {"left": (-STEP, 0.0), "right": (STEP, 0.0), "down": (0.0, -STEP), "up": (0.0, STEP)}
HELP = (
    "Click: add a point. Drag: move it. Right or double click: remove it. Keys, once the picture was clicked: arrows "
    "move the cross, space adds a point there, 1 or 0 one of that class, Delete removes the nearest. Escape lets go of "
    "the keys, and Tab leads on."
)


class PointPad(ipywidgets.VBox):
    """Points of two classes in a square, to be edited.

    Args:
        points: to begin with.
        limit: coordinates lie between ``-limit`` and ``limit``.

    Attributes:
        value: the points; a new tuple after every change.
    """

    value = traitlets.Tuple()

    def __init__(self, points: tuple[Point, ...], limit: float) -> None:
        self.limit, self.cross = limit, (0.0, 0.0)
        self._before: list[tuple[Point, ...]] = []  # for Undo
        self._dragged: int | None = None
        figure = Figure(figsize=(3.9, 3.7), alt="Points to be edited")
        self._axes, self.canvas = figure.subplots(), _canvas(figure)
        for event, react in (
            ("button_press_event", self._press),
            ("motion_notify_event", self._move),
            ("button_release_event", self._release),
            ("figure_leave_event", self._release),
            ("key_press_event", self._key),
        ):
            self.canvas.mpl_connect(event, react)
        self.label = ipywidgets.ToggleButtons(
            options={"class 1 (circles)": 1, "class 0 (squares)": 0}, style={"button_width": "auto"}
        )
        undo, clear = (ipywidgets.Button(description=name, layout={"width": "70px"}) for name in ("Undo", "Clear"))
        undo.on_click(lambda _: self.undo())
        clear.on_click(lambda _: self._change(()))
        self.where = ipywidgets.HTML()
        hint = ipywidgets.HTML(f"<small>{HELP}</small>", layout=ipywidgets.Layout(width="420px"))
        super().__init__(
            [
                ipywidgets.HBox([self.label, undo, clear]),
                self.canvas,
                self.where,
                hint,
            ],
            value=points,
        )
        self._draw()
        self.observe(lambda _: self._draw(), names="value")

    def undo(self) -> None:
        """Back to before the last change; nothing where there was none."""
        if self._before:
            self.value = self._before.pop()

    def add(self, place: tuple[float, float], label: int) -> None:
        self._change((*self.value, (*place, label)))

    def remove(self, place: tuple[float, float], reach: float = math.inf) -> None:
        """Remove the point nearest to a place, if it is within reach."""
        nearest = self._nearest(place, reach)
        if nearest is not None:
            self._change(self.value[:nearest] + self.value[nearest + 1 :])

    def _change(self, points: tuple[Point, ...]) -> None:
        if points != self.value:
            self._before.append(self.value)
            self.value = points

    def _nearest(self, place: tuple[float, float], reach: float) -> int | None:
        distances = [math.dist(place, point[:2]) for point in self.value]
        return distances.index(min(distances)) if distances and min(distances) <= reach else None

    def _press(self, event: MouseEvent) -> None:
        if event.xdata is None or event.ydata is None:  # outside the axes
            return
        self.cross = place = (event.xdata, event.ydata)
        self._dragged = None
        if event.dblclick or event.button == MouseButton.RIGHT:
            self.remove(place, REACH)
        elif event.button == MouseButton.LEFT:
            self._dragged = self._nearest(place, REACH)
            if self._dragged is None:
                self.add(place, self.label.value)
            else:
                self._before.append(self.value)

    def _move(self, event: MouseEvent) -> None:
        if self._dragged is None or event.xdata is None or event.ydata is None:
            return
        self.cross = (event.xdata, event.ydata)
        points = list(self.value)
        points[self._dragged] = (*self.cross, points[self._dragged][2])
        self.value = tuple(points)

    def _release(self, event: LocationEvent) -> None:
        if self._dragged is not None and self._before[-1] == self.value:
            self._before.pop()  # it was clicked and not moved: nothing to undo
        self._dragged = None

    def _key(self, event: KeyEvent) -> None:
        if event.key in ARROWS:
            pairs = zip(self.cross, ARROWS[event.key], strict=True)
            x1, x2 = (max(-self.limit, min(self.limit, at + by)) for at, by in pairs)
            self.cross = x1, x2
            self._draw()
        elif event.key == " ":
            self.add(self.cross, self.label.value)
        elif event.key in ("0", "1"):
            self.add(self.cross, int(event.key))
        elif event.key in ("delete", "backspace"):
            self.remove(self.cross)
        elif event.key == "escape":
            # In the browser a canvas keeps all keys to itself, Tab included. Hidden for a moment, it loses the focus.
            self.canvas.layout.visibility = "hidden"
            threading.Timer(0.2, self.canvas.layout.set_trait, ("visibility", "visible")).start()

    def _draw(self) -> None:
        editable_points(self._axes, self.value, self.cross, self.limit)
        self.canvas.draw_idle()
        ones = sum(label for *_, label in self.value)
        x1, x2 = self.cross
        self.where.value = (
            f"Cross at ({x1:.2f}, {x2:.2f}). Points: {ones} of class 1, {len(self.value) - ones} of class 0."
        )


def _canvas(figure: Figure) -> ipywidgets.DOMWidget:
    """An ipympl canvas for the figure, without the title, toolbar and keys of a Matplotlib window."""
    # The import of ipympl would make it the backend of all figures in the notebook.
    with mock.patch("matplotlib.use"):
        from ipympl.backend_nbagg import Canvas, FigureManager

    with warnings.catch_warnings():
        # It calls constructors of traitlets in a way that these warn of.
        warnings.filterwarnings("ignore", "Passing unrecognized arguments", DeprecationWarning)
        canvas = Canvas(figure)
        manager = FigureManager(canvas, 0)
    canvas.header_visible = canvas.footer_visible = canvas.toolbar_visible = canvas.resizable = False
    canvas.mpl_disconnect(manager.key_press_handler_id)
    return canvas
