"""Points of figures that a page explains: their places, their words, and what a browser shows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saelens_adaptive_ortho.report.figures.files import figure_svg, run_figures
from saelens_adaptive_ortho.report.figures.style import CSS_COLOURS, STYLE, Picture, panel_grid
from saelens_adaptive_ortho.report.figures.words import best_within, interventions
from saelens_adaptive_ortho.report.page.run import render_page
from saelens_adaptive_ortho.report.statistics import summarise
from saelens_adaptive_ortho.results import Result
from tests.report.pages import HOSTILE
from tests.report.runs import core, result

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no browser")
GAIN = "token/forget_damage_at_0.10"
POINTS = {"token": [[0.02, 0.5], [0.06, 1.25], [0.3, 4.0]], "mcq": [[1.0, 0.9], [0.96, 0.6]]}
EDITS = {"token": [[10, 2.0, None], [20, 5.657, None], [40, 32.0, None]]}
EDITS["mcq"] = [[10, 2.0, 0.0312], [40, 8.0, 0.05]]


def unlearning(variant: str = "adaptive", seed: int = 0, **details: Any) -> Result:
    frontiers = {
        part: {"x": [x for x, _ in points], "y": [y for _, y in points]}
        for part, points in POINTS.items()
    }
    known = {"frontiers": frontiers, "points": POINTS, "interventions": EDITS, **details}
    return result("unlearning", variant, seed, {GAIN: 2.0 + seed}, details=known)


def run(*variants: str) -> list[Result]:
    found = [unlearning(variant, seed) for variant in variants for seed in (0, 1)]
    return [*found, *(r for v in variants for r in core(v, [0.9, 0.91]))]


def circles(text: str) -> list[tuple[float, float, str]]:
    """Place and words of each point."""
    pattern = r'<circle cx="([\d.]+)" cy="([\d.]+)" r="5"><title>(.*?)</title></circle>'
    found = re.findall(pattern, text, re.DOTALL)
    return [(float(x), float(y), html.unescape(words)) for x, y, words in found]


def test_circles_lie_on_the_drawn_points() -> None:
    """The markers that matplotlib draws have the same coordinates."""
    figure, (left, right) = panel_grid(2, 3.0)
    left.plot([1.0, 5.0], [2.0, 3.0], "o")
    right.plot([0.1], [100.0], "s")
    for axes, x, y in ((left, 1.0, 2.0), (left, 5.0, 3.0), (right, 0.1, 100.0), (left, 9.0, 2.0)):
        figure.mark(axes, x, y, f"at {x:g}")
    svg = figure_svg(figure, "p")
    drawn = re.findall(r'<use xlink:href="#p-m\w+" x="([\d.]+)" y="([\d.]+)" style="fill', svg)
    places = np.array(drawn, dtype=float)
    found = circles(svg)
    assert [words for _, _, words in found] == ["at 1", "at 5", "at 0.1"]  # 9 is outside
    assert svg.count('<g class="points">') == 2
    for x, y, _ in found:
        assert np.abs(places - [x, y]).max(1).min() < 0.1


def test_words_of_a_point_are_escaped() -> None:
    figure, (axes,) = panel_grid(1, 3.0)
    axes.plot([0.0, 1.0], [0.0, 1.0])
    figure.mark(axes, 0.5, 0.5, HOSTILE)
    svg = figure_svg(figure, "p")
    assert HOSTILE not in svg
    assert circles(svg)[0][2] == HOSTILE


def test_interventions_in_words() -> None:
    found = unlearning()
    assert interventions(found, "token")[1] == (
        "20 latents clamped at \N{MINUS SIGN}5.66 \N{MULTIPLICATION SIGN} their mean activation, "
        "no gate"
    )
    assert interventions(found, "mcq")[1].endswith("activation, gate 5.0% of the tokens")
    bounded = unlearning(points={"bounded": [[0, 1]]}, interventions={"bounded": [[8, 0.5, None]]})
    assert interventions(bounded, "bounded") == ["8 directions, 50% removed everywhere"]
    # Results of earlier versions do not say what a point was.
    assert interventions(unlearning(interventions={}), "token") == ["", "", ""]


def test_the_setting_beside_a_reading_stays_within_its_limit() -> None:
    """Of (retain .02, forget .5), (.06, 1.25) and (.3, 4), the second is the best within .10."""
    words = best_within(unlearning(), GAIN)
    assert "20 latents" in words
    assert words.endswith("Forget damage 1.25 nats, retain damage 0.0600 nats")
    assert "10 latents" in best_within(unlearning(), "mcq/forget_accuracy_at_0.99")
    assert "40 latents" in best_within(unlearning(), "mcq/forget_accuracy_at_0.95")
    for other in ("token/forget_damage_at_0.01", "score", "bounded/forget_damage_at_0.10"):
        assert best_within(unlearning(), other) == ""
    assert best_within(unlearning(interventions={}), GAIN) == ""


def test_points_of_a_run() -> None:
    """The trade-off has a mean and its SAEs; the frontiers have the points within their panels."""
    results = run("baseline", "adaptive")
    figures = run_figures(summarise(results), results)
    of_tradeoff, of_frontiers = (
        [words for _, _, words in circles(figure_svg(figures[name], "p"))]
        for name in ("tradeoff", "unlearning")
    )
    firsts = [words.splitlines()[0] for words in of_tradeoff]
    assert firsts[3:] == ["adaptive, mean of 2 seeds", "adaptive, seed 0", "adaptive, seed 1"]
    assert "20 latents clamped" in of_tradeoff[4]
    assert "Explained variance, pooled: 0.900" in of_tradeoff[4]
    expected = "Forget accuracy 0.600, retain accuracy 0.960"
    assert any(expected in w and w.startswith("baseline, seed 1\n40") for w in of_frontiers)


def test_figures_have_the_colours_of_the_page() -> None:
    figure, (axes,) = panel_grid(1, 3.0)
    axes.plot([0.0, 1.0], [0.0, 1.0], color=CSS_COLOURS["--f-2"])
    svg = figure_svg(figure, "p")
    assert "stroke: var(--f-2,#0072b2)" in svg
    assert f"fill: var(--f-ground,{STYLE['figure.facecolor'].replace('white', '#ffffff')})" in svg
    page = render_page(run("baseline", "adaptive"))
    dark = page[page.index("@media screen and (prefers-color-scheme: dark)") :].split("} }")[0]
    assert set(re.findall(r"(--f-[\w]+):#[0-9a-f]{6}", dark)) == CSS_COLOURS.keys()


def test_a_figure_of_another_package_has_no_points() -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.add_subplot().plot([1], [2])
    assert 'class="points"' not in figure_svg(figure, "p")
    assert 'class="points"' not in figure_svg(Picture(3.0, 2.0), "p")


# ------------------------------------------------------------------------ in a browser

DRIVER = """
<script>
(() => {
  const points = [...document.querySelectorAll("#tradeoff .points circle")];
  const tip = document.getElementById("tip");
  const send = (node, type, init) => node.dispatchEvent(new (init.key ? KeyboardEvent :
    PointerEvent)(type, { bubbles: true, cancelable: true, ...init }));
  const said = () => (tip.hidden ? null : tip.textContent.split("\\n")[0]);
  const box = () => { const b = tip.getBoundingClientRect();
    return b.left >= 0 && b.right <= innerWidth && b.top >= 0 && b.bottom <= innerHeight; };
  const result = { before: said(), scroll: document.documentElement.scrollWidth - innerWidth };
  const one = points[1].getBoundingClientRect();
  const hit = document.elementFromPoint(one.left + one.width / 2, one.top + one.height / 2);
  send(hit, "pointerover", {});
  result.hovered = [hit.matches(".points circle"), said(), box()];
  send(hit, "pointerout", {});
  result.left = said();
  result.tabbable = points.filter((p) => p.getAttribute("tabindex") === "0").length;
  points[0].focus();
  result.focused = [said(), said() === points[0].getAttribute("aria-label").split("\\n")[0]];
  send(points[0], "keydown", { key: "ArrowRight" });
  result.next = document.activeElement === points[1];
  send(document.activeElement, "keydown", { key: "End" });
  result.end = document.activeElement === points[points.length - 1];
  send(document.activeElement, "keydown", { key: "Escape" });
  result.escaped = said();
  result.titles = document.querySelectorAll(".points title").length;
  document.body.dataset.result = JSON.stringify(result);
  if (parent !== window) parent.postMessage(JSON.stringify(result), "*");
})();
</script>
"""
FRAME = """<!doctype html><body>
<script>onmessage = (event) => { document.body.dataset.result = event.data; };</script>
<iframe src="driven.html" style="width:390px;height:2400px"></iframe>
"""


@in_browser
@pytest.mark.parametrize("name", ["driven.html", "framed.html"], ids=["desktop", "phone"])
def test_pointer_and_keys_show_what_a_point_is(tmp_path: Path, name: str) -> None:
    page = render_page(run("baseline", "adaptive"), "model_name: tiny\n")
    (tmp_path / "driven.html").write_text(page.replace("</body>", f"{DRIVER}</body>"))
    (tmp_path / "framed.html").write_text(FRAME)
    command = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--window-size=1200,2400", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / name).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    match = re.search(r'data-result="([^"]*)"', done.stdout)
    assert match is not None, done.stderr[-500:]
    found = json.loads(html.unescape(match[1]))
    assert found["before"] is None
    assert found["scroll"] <= 0  # nothing is wider than the window
    is_point, said, inside = found["hovered"]
    assert is_point
    assert inside
    assert re.fullmatch(r"(baseline|adaptive), (mean of 2 seeds|seed [01])", said)
    assert found["left"] is None
    assert found["tabbable"] == 1
    assert found["focused"][1]
    assert found["next"]
    assert found["end"]
    assert found["escaped"] is None
    assert found["titles"] == 0  # or the browser would show the words twice
