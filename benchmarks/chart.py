"""The measurements as one picture: this project beside others, and what one transition costs."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, NullLocator

from problem import CHARTED, CURVES, OURS, WORKLOADS
from report import curve_medians, medians, milliseconds

OWN, OTHER, INK = "#b2182b", "#bdbdbd", "#222222"
DPI = 100
CURVE_STYLES = {
    "bnn_utils, autograd": ("autograd", "#8c8c8c"),
    "bnn_utils, torch": ("closed form", "#f4a582"),
    "bnn_utils": ("native code", OWN),
}
CURVE_TITLES = {
    "lanes": "One transition against chains (80 points)",
    "points": "against points (64 chains)",
    "width": "against the width w of 2-w-w-1 (64 chains, 80 points)",
}


def draw(table: pd.DataFrame) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.07, hspace=0.04)
    figure = Figure(figsize=(14, 10), dpi=DPI, facecolor="white", layout=layout)
    figure.suptitle(title(table), fontsize=18, color=INK, x=0.008, ha="left", fontweight="bold")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1.2, 1])[0]
    heights = [len(medians(table, name)) + 1.2 for name in CHARTED]
    for ax, name in zip(left.subplots(len(CHARTED), 1, height_ratios=heights), CHARTED, strict=True):
        bars(ax, table, name)
    axes = right.subplots(len(CURVES), 1)
    for ax, curve in zip(axes, CURVES, strict=True):
        cost(ax, table, curve)
    legend = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    style = {"ncols": 4, "frameon": False, "fontsize": 12.5, "handlelength": 1.5, "columnspacing": 1.2}
    right.legend(legend.values(), legend, loc="outside upper left", **style)
    return figure


def title(table: pd.DataFrame) -> str:
    """How this project compares with the fastest other library, over the workloads of the chart."""
    ratios = []
    for name in CHARTED:
        values = medians(table, name)["value"]
        ratios.append(values[~values.index.isin(OURS)].min() / values["bnn_utils"])
    low, high = (f"{ratio:.1f}" for ratio in (min(ratios), max(ratios)))
    return f"HMC on one CPU core: bnn_utils is {low} to {high} times as fast as the fastest other library"


def bars(ax: Axes, table: pd.DataFrame, name: str) -> None:
    """Time of each library, fastest on top."""
    workload = WORKLOADS[name]
    values = medians(table, name)["value"]
    is_own = values.index.isin(OURS)
    drawn = ax.barh(values.index, values, color=[OWN if own else OTHER for own in is_own], height=0.78)
    labels = [f"{value:.0f}" if value >= 9.5 else f"{value:#.2g}" for value in values]
    texts = ax.bar_label(drawn, [f"{label} {workload.unit}" for label in labels], padding=4)
    for own, text, library in zip(is_own, texts, ax.get_yticklabels(), strict=True):
        for label in (text, library):
            label.set(fontsize=13, color=INK, fontweight="bold" if own else "normal")
    ax.invert_yaxis()
    ax.set_title(workload.title, loc="left", fontsize=14, color=INK)
    ax.margins(x=0.12, y=0.02)
    ax.spines[:].set_visible(False)
    ax.tick_params(left=False, bottom=False, labelbottom=False)


def cost(ax: Axes, table: pd.DataFrame, curve: str) -> None:
    """Milliseconds per transition along one curve, and the limit of the processor."""
    settings = curve_medians(table, curve)
    column = {"lanes": "chains", "points": "points"}.get(curve)
    settings["size"] = settings[column] if column else settings["network"].str.split("-").str[1].astype(int)
    for library, (label, colour) in CURVE_STYLES.items():
        line = settings[settings["library"] == library]
        ax.plot(line["size"], line["value"], "o-", color=colour, lw=2.2, ms=5.5, label=label)
    peak = table[table["workload"] == "peak"]["value"].median()
    sizes = settings.drop_duplicates("size")
    ax.plot(sizes["size"], milliseconds(sizes["flops"], peak), "--", color=INK, lw=1.6, label="core's limit")
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(sizes["size"], [f"{size:,}" for size in sizes["size"]])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(numticks=4))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g} ms")
    ax.tick_params(labelsize=12.5, colors=INK)
    ax.grid(axis="y", color="#e6e6e6")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(CURVE_TITLES[curve], loc="left", fontsize=14, color=INK)
