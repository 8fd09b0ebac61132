"""Draws the figures of the documentation: `python docs/figures.py [DEMO_DIR]`.

Each is written to docs/figures/, as NAME-light.svg and NAME-dark.svg. DEMO_DIR is the
output of `smf demo`, by default runs/demo.
"""

import runpy
import sys
from collections import defaultdict
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Curve
from rich.console import Console

from smf_jax.config import require
from smf_jax.data.fact_batches import fact_batches
from smf_jax.report import COLOURS
from smf_jax.runs.files import PATCH, read_result
from smf_jax.runs.load import load_run
from smf_jax.runs.record import lineage_of, read_record
from smf_jax.slots import patch
from smf_jax.slots.document_frequency import Background
from smf_jax.slots.select import SCORERS, count_reads, top_slots
from smf_jax.verbs.task import load_task

ROOT = Path(__file__).parents[1]
WIDTH = 7.0  # inches; at 700 pixels, a point is 1.4 pixels
SMALL = 8.5  # points
HEAD = "-|>,head_width=2.2,head_length=4"  # of arrows
FLOOR, ROOM = 8, 4.2  # heights
METHODS = {"smf": "SMF", "lora": "LoRA", "full": "full finetuning"}
STATEMENT = "the papers of"  # begins the text of `draw_slots`
PARTS = ("before the name", "name", "after the name", "answer")
FORWARD = (
    ("tokens", "[batch, seq]"),
    ("lower layers", "[batch, seq, dim]"),
    ("query", "[batch, seq, heads, 2, key_dim/2]"),
    ("product keys, top_k", "slots, weights: [batch, seq, reads]"),
    ("weighted sums of rows", "[batch, seq, value_dim]"),
    ("gate, output, upper layers", "[batch, seq, dim]"),
    ("loss", "mean over the answer tokens"),
)
TFIDF = (
    r"$\dfrac{\mathrm{counts}}{\mathrm{sum\ of\ counts}}\;\log"
    r"\dfrac{\mathrm{documents}+1}{\mathrm{frequency}+1}$"
)


class Palette(NamedTuple):
    """Colours for a page."""

    page: str
    text: str
    muted: str
    line: str
    band: str
    gradient: str
    methods: dict[str, str]


LIGHT = ("#ffffff", "#1f2328", "#5b6570", "#b4bcc5", "#f2f4f6", "#b54708")
DARK = ("#121212", "#e8eaed", "#a3adb8", "#59636e", "#22272d", "#ffab66")
BRIGHT = {"smf": "#3ddc9f", "lora": "#ff9950", "full": "#93a4ff"}
PALETTES = {"light": Palette(*LIGHT, COLOURS), "dark": Palette(*DARK, BRIGHT)}


def main(demo: Path) -> None:
    """Writes all figures."""
    figures = {
        draw_frontier: read_result(demo / "summary.json"),
        draw_slots: read_one_fact(demo),
        draw_house: read_rooms(),
        draw_step: None,
    }
    texts = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    lines = ("axes.edgecolor", "xtick.color", "ytick.color")
    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9.5}
    style |= {"xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False}
    style |= {"xtick.major.pad": 6, "svg.hashsalt": "smf"}  # the same ids every time
    for theme, palette in PALETTES.items():
        style |= dict.fromkeys(texts, palette.text)
        style |= dict.fromkeys(lines, palette.muted)
        for draw, content in figures.items():
            name = f"{draw.__name__.removeprefix('draw_')}-{theme}.svg"
            path, undated = ROOT / "docs" / "figures" / name, {"Date": None}
            with matplotlib.rc_context(style):
                draw(palette, content).savefig(path, transparent=True, metadata=undated)


def draw_frontier(palette: Palette, summary: dict[str, Any]) -> Figure:
    """Draws known facts against new ones, along the run of each method."""
    figure = Figure((WIDTH, 4.3), layout="constrained")
    axes = figure.add_subplot()
    for name, row in summary["methods"].items():
        steps, taught, held_out, known = zip(*row["curve"], strict=True)
        colour = palette.methods[name]
        axes.plot(held_out, known, "o:", color=colour, ms=3, lw=1.3)
        axes.plot(taught, known, "o-", color=colour, ms=4.5, lw=2)
        end = (taught[-1] + 0.025, known[-1] - 0.005)
        axes.text(*end, METHODS[name], color=colour, weight="bold", va="center")
    axes.plot(1, 1, "*", color=palette.text, ms=9)
    axes.text(1.025, 1.02, "goal")
    for style, label in (("o-", "taught"), ("o:", "held-out wording")):
        axes.plot([], [], style, color=palette.muted, ms=4, label=label)
    every = f"an evaluation every {steps[1] - steps[0]} steps"
    axes.legend(loc="lower left", title=every, alignment="left")
    axes.grid(color=palette.line, alpha=0.35, lw=0.7)
    new, old = row["taught"]["n"], row["known"]["n"]  # the same for every method
    axes.set_xlabel(f"new facts (exact match, n = {new:,})")
    axes.set_ylabel(f"known facts (exact match, n = {old:,})")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.05))
    return figure


class FactReads(NamedTuple):
    """What one text of a taught fact reads, and what its batch writes."""

    words: list[str]
    bounds: tuple[int, ...]  # of `PARTS`
    weights: Float[np.ndarray, "words num_slots"]  # means over heads; 0: not read
    background: Background
    written: Bool[np.ndarray, " num_slots"]
    facts: int  # of the batch


def read_one_fact(demo: Path) -> FactReads:
    """Returns the reads of one text in the first batch of the demo's SMF run.

    Raises:
      ConfigError: A run is missing, no text of the batch begins with `STATEMENT`, or
        the run did not write the slots that are selected here.
    """
    base = load_run(demo / "base")
    config = lineage_of(read_record(demo / "smf")).finetune
    memory, quiet = base.memory, Console(quiet=True)
    # As the run itself loads them.
    task = load_task(config, base, quiet)
    background = task.background
    batch = next(fact_batches(task.facts, task.batch_size, config.seed))
    # Only the table trains, so every step reads the same.
    prefix = jax.jit(base.model.prefix)
    slots, weights = prefix(batch.tokens, batch.positions, batch.segments).reads
    counts = count_reads(slots, batch.segments > 0, memory.num_slots)
    (frequency,), documents = background
    scores = SCORERS[config.optim.select](counts, frequency, documents)
    selected = top_slots(scores, config.optim.top_t)
    written = np.isin(np.arange(memory.num_slots), selected)
    changed = patch.load(demo / "smf" / PATCH).tables[0].slots
    require(written[changed].sum() == written.sum(), f"{demo} wrote other slots")

    word, texts = base.tokenizer.rules.id_to_token, []
    for row, column in np.argwhere((batch.positions == 0) & (batch.segments > 0)):
        text = np.flatnonzero(batch.segments[row] == batch.segments[row, column])
        words = [word(int(token)) for token in batch.tokens[row, text]]
        if " ".join(words).startswith(STATEMENT):
            texts.append((row, text, words))
    require(len(texts) > 0, f"{demo}: no text begins with {STATEMENT!r}")
    row, text, words = texts[0]
    fact = task.questions.new[batch.records[row, text[0]]]
    name = fact.id.split(" / ")[0].split()
    start, last = words.index(name[0]), len(words) - len(fact.answers[0].split())
    bounds = (0, start, start + len(name), last, len(words))
    means = np.zeros((len(words), memory.num_slots))
    places = (np.arange(len(words))[:, None], slots[row, text])
    np.add.at(means, places, weights[row, text] / memory.num_heads)
    return FactReads(words, bounds, means, background, written, task.batch_size)


def draw_slots(palette: Palette, fact: FactReads) -> Figure:
    """Draws the slots that a fact's words read, by document frequency."""
    green = palette.methods["smf"]
    figure = Figure((WIDTH, 5.3), layout="constrained")
    dots, bars = figure.subplots(2, 1, sharex=True, height_ratios=(6, 1))
    (frequency,), documents = fact.background
    # Slots that all documents read are in a band above the axis's scale.
    band = (1.035 * documents, 1.21 * documents)
    dots.axhspan(*band, color=palette.band, lw=0)
    kinds = (
        (True, "slot written", green, green),
        (False, "slot not written", palette.muted, palette.page),
    )
    for index, weights in enumerate(fact.weights):
        slots = np.flatnonzero(weights)
        x, y = _swarm(frequency[slots], documents, band)
        for written, label, edge, fill in kinds:
            style = {"color": edge, "mfc": fill, "label": None if index else label}
            kind = fact.written[slots] == written
            dots.plot(index + x[kind], y[kind], "o", ms=4.2, **style)
        share = weights[fact.written].sum()
        bars.bar(index, share, 0.6, color=green)
        percent = f"{100 * share:.0f} %"
        bars.text(index, share + 0.07, percent, ha="center", fontsize=SMALL)

    right, ticks = len(fact.words) - 0.5, range(0, documents, 50)
    right_aligned = {"ha": "right", "color": palette.muted, "fontsize": SMALL}
    dots.text(right, band[0] + 4, "TF-IDF is 0: never written ", **right_aligned)
    dots.set_yticks([*ticks, sum(band) / 2], [*ticks, f"all {documents}"])
    dots.set(ylim=(-5, band[1]), ylabel="background documents that read the slot")
    dots.hlines(ticks, -0.6, right, color=palette.line, alpha=0.35, lw=0.7)
    bars.set(xlim=(-0.6, right), ylim=(0, 1.3), ylabel="read weight\non written")
    bars.set_yticks([0, 1], ["0", "100 %"])
    bars.set_xticks(range(len(fact.words)), fact.words, weight="bold")
    below = {"transform": bars.get_xaxis_transform(), "color": palette.muted}
    for part, (start, end) in zip(PARTS, pairwise(fact.bounds), strict=True):
        ends = (start - 0.4, end - 0.6)
        bars.plot(ends, (-0.42, -0.42), lw=1.2, clip_on=False, **below)
        middle = {"x": sum(ends) / 2, "y": -0.5, "ha": "center", "va": "top"}
        bars.text(s=part, fontsize=SMALL, **middle, **below)
    place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "borderpad": 0.2}
    dots.legend(ncols=2, handletextpad=0.1, columnspacing=1.2, **place)
    size = f"{fact.written.sum():,} of {len(fact.written):,} slots"
    batch = f"the batch of {fact.facts} facts writes {size}"
    dots.text(right, band[1] + 6, batch, **right_aligned)
    return figure


def _swarm(frequency: np.ndarray, documents: int, band: tuple) -> np.ndarray:
    """Returns places of dots beside each other, those of all documents in a band."""
    x, y = places = np.array([0 * frequency, frequency], float)
    common = frequency == documents
    number = np.arange(common.sum())
    x[common] = 0.1 * (number % 8 - min(len(number) - 1, 7) / 2)
    y[common] = band[1] - (band[1] - band[0]) / 5 * (1 + number // 8)
    order = np.argsort(y, kind="stable")[: len(y) - len(number)]
    for rank, index in enumerate(order):
        near = [x[other] for other in order[:rank] if y[index] - y[other] < 4.5]
        tries = (0.1 * sign * step for step in range(99) for sign in (1, -1))
        x[index] = next(at for at in tries if all(abs(at - o) > 0.09 for o in near))
    return places


def read_rooms() -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Returns the rooms by floor, and imports that no chain of others implies."""
    house = runpy.run_path(str(ROOT / "tests" / "test_house.py"))
    below, reached, room = defaultdict(set), {}, house["room"]
    for name, imported in house["GRAPH"].items():
        below[room(name)] |= {*map(room, imported)} - {room(name), "__init__"}
    floors = [[name for name in floor if name in below] for floor in house["FLOORS"]]
    direct = []
    for name in chain(*floors):  # from the lowest, so what it imports is there
        implied = set().union(*(reached[to] for to in below[name]))
        reached[name] = below[name] | implied
        direct += [(name, to) for to in sorted(below[name] - implied)]
    return floors, direct


def draw_house(palette: Palette, rooms: tuple[list, list]) -> Figure:
    """Draws the rooms of the package by floor, and their imports."""
    floors, imports = rooms
    height = FLOOR * len(floors) + 3
    figure, axes = _canvas(height)
    floor_of = {name: number for number, floor in enumerate(floors) for name in floor}
    package = ROOT / "smf_jax"
    label = {n: f"{n}/" if (package / n).is_dir() else f"{n}.py" for n in floor_of}
    widths = {name: 3.2 + 1.18 * len(label[name]) for name in label}
    arrows = [
        [a, *((a, b, n) for n in range(floor_of[a] - 1, floor_of[b], -1)), b]
        for a, b in imports
    ]
    x = _place(floors, arrows, widths)
    y = [height - 7 - FLOOR * number for number in range(len(floors))]
    for middle in y[::2]:
        corner = (0, middle - FLOOR / 2)
        axes.add_patch(Rectangle(corner, 100, FLOOR, color=palette.band, lw=0))
    for arrow in arrows:
        points = [(x[node], y[floor_of.get(node, node[-1])]) for node in arrow]
        curve = points[:1]
        for (left, top), (right, bottom) in pairwise(points):
            start, end = top + ROOM / 2, bottom - ROOM / 2
            middle = (start + end) / 2
            curve += [(left, start)] * 3  # straight past the rooms of a floor
            curve += [(left, middle), (right, middle), (right, end)]
        _arrow(axes, palette.muted, curve, Curve.CURVE4)
    for name, width in widths.items():
        corner = (x[name] - width / 2, y[floor_of[name]] - ROOM / 2)
        _box(axes, palette, (*corner, width, ROOM), label[name])
    note = "An arrow is an import; those that a chain of arrows implies are left out."
    axes.text(50, height - 1.2, note, color=palette.muted, ha="center", fontsize=SMALL)
    return figure


def _place(floors: list, arrows: list, widths: dict) -> dict[Any, float]:
    """Returns a place for each room, and for each arrow on each floor that it passes.

    In sweeps up and down, each goes to the mean of its neighbours if there is room.
    """
    layers, near = [list(floor) for floor in floors], defaultdict(list)
    for arrow in arrows:
        for node in arrow[1:-1]:
            layers[node[2]].append(node)
        for upper, lower in pairwise(arrow):
            near[upper].append(lower)
            near[lower].append(upper)
    x = {n: 50 + i - len(layer) / 2 for layer in layers for i, n in enumerate(layer)}
    for order in (layers[::-1], layers) * 6:
        for layer in order:
            want = {n: np.mean([x[other] for other in near[n] or [n]]) for n in layer}
            layer.sort(key=want.get)
            x |= _spread(layer, want, widths)
    return x


def _spread(nodes: list, want: dict[Any, float], widths: dict[str, float]) -> dict:
    """Returns places near the wanted ones, in order and without overlap."""
    size = np.array([widths.get(node, 1.5) for node in nodes])
    packed = np.cumsum(size + 1.5) - size / 2
    shift = np.array([want[node] for node in nodes]) - packed
    least = np.minimum.accumulate(shift[::-1])[::-1]
    shift = (np.maximum.accumulate(shift) + least) / 2  # never falls: no overlap
    shift = np.clip(shift, 0, 99 - packed[-1] - size[-1] / 2)
    return dict(zip(nodes, packed + shift, strict=True))


def draw_step(palette: Palette, _content: None) -> Figure:
    """Draws the way of a batch through one step of SMF."""
    figure, axes = _canvas(82.5)
    rows = "[top_t, value_dim]"
    boxes = [
        *(((2, 2 + 10 * n, 31, 7.5), *texts) for n, texts in enumerate(FORWARD)),
        ((68, 32, 14.5, 7.5), "counts", "[num_slots]"),
        ((84.5, 32, 14.5, 7.5), "document\nfrequency"),
        ((68, 43, 31, 12), "TF-IDF", TFIDF),
        ((68, 58.5, 31, 7.5), "selected slots", "[top_t]"),
        ((40, 73, 25, 7.5), "gradient of these rows", rows),
        ((40, 63, 25, 7.5), "clip, optimizer", rows),
    ]
    for box in boxes:
        _box(axes, palette, *box)
    grey, orange, green = palette.muted, palette.gradient, palette.methods["smf"]
    arrows = [
        *((grey, (13, y - 2.5), (13, y)) for y in range(12, 63, 10)),
        *((grey, (33, 35.7), (68, 35.7)), (grey, (40, 45.7), (33, 45.7))),
        *((grey, (75.2, 39.5), (75.2, 43)), (grey, (91.7, 39.5), (91.7, 43))),
        *((grey, (91.7, 27.5), (91.7, 32)), (grey, (83.5, 55), (83.5, 58.5))),
        (grey, (83.5, 66), (83.5, 76.7), (65, 76.7)),
        *((orange, (22, 62), (22, 59.5)), (orange, (22, 52), (22, 49.5))),
        (orange, (33, 47.7), (36.5, 47.7), (36.5, 76.7), (40, 76.7)),
        *((orange, (46, 73), (46, 70.5)), (green, (46, 63), (46, 57))),
    ]
    for colour, *points in arrows:
        _arrow(axes, colour, points)
    cached = Rectangle((0.5, 10.7), 34, 30.1, fill=False, ls=":", lw=1.2)
    axes.add_patch(cached).set_edgecolor(grey)
    for number, kind in enumerate("--r-w---r-w--r-"):  # rows read, and written
        fill = {"-": palette.page, "r": palette.line, "w": green}[kind]
        row = Rectangle((40, 43.5 + 0.9 * number), 25, 0.9, ec=grey, fc=fill, lw=0.6)
        axes.add_patch(row)
    for x, y, place, colour, text in (
        (36, 20, "left", grey, "the same in every\nstep: can be cached"),
        (51, 34.3, "center", grey, "slots that each token reads"),
        (52.5, 41.5, "center", grey, "values [num_slots, value_dim]"),
        (91.7, 24.5, "center", grey, "background,\ncounted once"),
        (35.3, 76.7, "right", orange, "gradient of the sums\n[batch, seq, value_dim]"),
        (47.5, 60, "left", green, "rows written;\nall else is frozen"),
    ):
        style = {"fontsize": SMALL, "linespacing": 1.3, "color": colour}
        axes.text(x, y, text, ha=place, va="center", **style)
    corners = ((2, 2), (68, 32), (68, 43), (40, 73), (43, 60))
    for number, (x, y) in enumerate(corners, 1):
        axes.plot(x, y, "o", ms=13, color=palette.text, zorder=5)
        style = {"color": palette.page, "weight": "bold", "fontsize": SMALL}
        axes.text(x, y, number, ha="center", va="center_baseline", zorder=6, **style)
    return figure


def _canvas(height: float) -> tuple[Figure, Axes]:
    """Returns a figure, and axes of 100 units by `height` from its upper left."""
    figure = Figure((WIDTH, WIDTH * height / 100))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 100), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, palette: Palette, place: tuple, title: str, small: str = ""):
    x, y, width, height = place
    box = FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=1", lw=1)
    axes.add_patch(box).set(fc=palette.page, ec=palette.muted, zorder=3)
    middle = {"ha": "center", "va": "center", "zorder": 4}
    x += width / 2
    axes.text(x, y + height * (0.3 if small else 0.5), title, **middle)
    axes.text(x, y + height * 0.7, small, fontsize=SMALL, color=palette.muted, **middle)


def _arrow(axes: Axes, colour: str, points: list, code: int = Curve.LINETO):
    path = Curve(points, [Curve.MOVETO, *[code] * (len(points) - 1)])
    arrow = FancyArrowPatch(path=path, arrowstyle=HEAD, lw=1.2)
    axes.add_patch(arrow).set(color=colour, zorder=2)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
