"""One self-contained HTML page per run, and the summary as JSON.

The page holds its figures and styles inline: it makes no request, needs no script, follows the
reader's light or dark setting and prints on paper.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

from saelens_adaptive_ortho.evaluations import evaluation
from saelens_adaptive_ortho.files import write_text_atomic
from saelens_adaptive_ortho.report.formatting import DASH, estimate, number
from saelens_adaptive_ortho.report.plots import figure_svg, run_figures, variant_styles
from saelens_adaptive_ortho.report.summary import (
    BETTER,
    MIXED,
    WORSE,
    Difference,
    EvaluationSummary,
    EvaluationVerdict,
    GapGroup,
    Summary,
    summarise,
)
from saelens_adaptive_ortho.report.tables import (
    difference_texts,
    level_texts,
    metric_label,
    pair_title,
    seeds_text,
)
from saelens_adaptive_ortho.results import Result, load_results, results_dir

QUESTION = (
    "Does adaptive orthogonality separate knowledge, the forget corpus from the retain corpus, "
    "at no cost in reconstruction?"
)

HEADLINE_CAPTION = (
    "Each panel is one metric: compare dots of the same seed along the thin lines, since the "
    "verdict in the corner rests on those paired differences and not on whether the bars of two "
    "variants overlap."
)

_GAP_WORDS = {"failed": "failed", "missing": "missing", "null": "no value"}

_CSS = """
:root { color-scheme: light dark; --ink:#1f2933; --muted:#5a6672; --rule:#dfe4ea; --ground:#fff;
  --soft:#f5f7f9; --good:#00704f; --bad:#b3261e; --accent:#0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink:#e6eaee; --muted:#9aa7b4; --rule:#333c46;
  --ground:#14191f; --soft:#1c232b; --good:#4fd1a5; --bad:#ff8a80; --accent:#6cb8ee; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--ground); color:var(--ink);
  font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif; }
main { max-width:1160px; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
h1 { font-size:1.7rem; line-height:1.25; margin:0 0 .4rem; letter-spacing:-.015em;
  max-width:30em; text-wrap:balance; }
h2 { font-size:1.15rem; margin:2.8rem 0 .5rem; letter-spacing:-.005em; }
h3 { font-size:.98rem; margin:1.8rem 0 .3rem; }
a { color:var(--accent); }
p { max-width:46em; margin:.5rem 0; }
.kicker,.note,figcaption,footer { color:var(--muted); font-size:.9rem; }
.kicker { margin:0 0 .6rem; }
.verdict { background:var(--soft); border-left:4px solid var(--accent); border-radius:0 6px 6px 0;
  padding:.7rem 1.2rem; margin:1.4rem 0; }
.verdict p { max-width:60em; }
.alert { border-left-color:var(--bad); }
figure { margin:.6rem 0 0; }
figure .panel { background:#fff; border:1px solid var(--rule); border-radius:8px; padding:.6rem;
  overflow-x:auto; }
figure svg { display:block; width:100%; height:auto; margin:0 auto; }
figcaption { max-width:52em; margin-top:.5rem; }
.scroll { overflow-x:auto; }
table { border-collapse:collapse; font-size:.84rem; line-height:1.35; width:100%;
  font-variant-numeric:tabular-nums; }
th,td { padding:.4rem .55rem; text-align:right; border-bottom:1px solid var(--rule);
  vertical-align:top; white-space:nowrap; }
th:first-child,td:first-child { text-align:left; padding-left:0; }
thead th { border-bottom:2px solid var(--rule); vertical-align:bottom; font-weight:600; }
thead tr.over th { border-bottom:0; color:var(--muted); font-weight:400; text-align:left;
  padding-bottom:0; }
tbody th { font-weight:500; white-space:normal; overflow-wrap:anywhere; min-width:12em; }
tbody th.primary { font-weight:700; }
td.first,th.first { border-left:1px solid var(--rule); }
.words td,.words th { text-align:left; }
.words td:last-child { white-space:normal; overflow-wrap:anywhere; min-width:9em; }
.swatch { display:inline-block; width:.65em; height:.65em; border-radius:50%;
  margin-right:.4em; }
.range { color:var(--muted); display:block; font-size:.92em; }
.tag { display:block; font-size:.92em; color:var(--muted); }
.better { color:var(--good); font-weight:600; } .worse { color:var(--bad); font-weight:600; }
.mixed { font-weight:600; }
nav { margin:1.4rem 0; } nav table { width:auto; } nav tbody th { min-width:9em; }
nav td,nav th { text-align:left; } nav td { white-space:normal; min-width:6.5em; }
.lines { margin:.7rem 0; padding-left:1.1rem; max-width:60em; } .lines li { margin:.3rem 0; }
.lines b { font-weight:600; } .whole { white-space:nowrap; }
details { margin-top:1.2rem; } summary { cursor:pointer; font-weight:600; }
pre { background:var(--soft); border-radius:6px; padding:1rem 1.2rem; overflow-x:auto;
  font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace; }
footer { margin-top:3rem; border-top:1px solid var(--rule); padding-top:1rem; }
@media (max-width:640px) { main { padding-top:1.5rem; } h1 { font-size:1.35rem; }
  figure svg { min-width:560px; } }
@media print { :root { --ink:#000; --muted:#444; --rule:#bbb; --ground:#fff; --soft:#f4f4f4;
  --good:#00553c; --bad:#8c1d18; }
  body { font-size:10pt; } main { max-width:none; padding:0; } table { font-size:7.5pt; }
  th,td { padding:.2rem .35rem; } figure,tr,.verdict { break-inside:avoid; }
  h2 { break-after:avoid; } pre { white-space:pre-wrap; } figure .panel { border:0; } }
"""

_PAGE = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$css</style>
</head>
<body>
<main>
<header>
<p class="kicker">$kicker</p>
<h1>$question</h1>
$verdict
</header>
$body
<footer>$footer</footer>
</main>
</body>
</html>
"""
)


def write_summary(run_dir: str | Path) -> Path:
    """Write ``RUN/results/summary.json`` atomically and return its path.

    Raises:
        ResultError: the run has no results, or one of them cannot be used.
    """
    document = summarise(load_results(run_dir)).to_json()
    text = json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False)
    return write_text_atomic(results_dir(run_dir) / "summary.json", text + "\n")


def write_report(run_dir: str | Path) -> Path:
    """Write ``RUN/report.html`` atomically and return its path.

    Raises:
        ResultError: the run has no results, or one of them cannot be used.
    """
    run_dir = Path(run_dir)
    results = load_results(run_dir)
    config_path = run_dir / "config.yaml"
    config = config_path.read_text(encoding="utf-8") if config_path.is_file() else None
    name = run_dir.resolve().name
    return write_text_atomic(run_dir / "report.html", render_page(results, config, name))


def render_page(results: Sequence[Result], config: str | None = None, name: str = "run") -> str:
    """Return the page as text.

    Args:
        results: what `load_results` returned.
        config: text of the run's configuration, shown as it is; None where there is none.
        name: the run's name for the title.
    """
    summary = summarise(results)
    figures = run_figures(summary, results)
    parts = [
        _contents(summary, config),
        _gaps(summary),
        _glance(figures),
        _headline(summary),
        *(_evaluation(summary, found, figures) for found in summary.evaluations.values()),
        _config(config),
        _provenance(summary, results),
    ]
    names = ", ".join(summary.variants)
    return _PAGE.substitute(
        title=escape(f"{name}: adaptive orthogonality in sparse autoencoders"),
        css=_CSS,
        kicker=escape(f"{name} · {names} · {seeds_text(summary)}"),
        question=escape(QUESTION),
        verdict=_verdict(summary),
        body="\n".join(part for part in parts if part),
        footer="Written by saelens-adaptive-ortho from the JSON files in the run's results folder.",
    )


def _verdict(summary: Summary) -> str:
    if summary.focus is None:
        return f'<div class="verdict"><p>{escape(summary.verdict)}</p></div>'
    text = "".join(f"<p>{escape(verdict.text)}</p>" for verdict in summary.focus_verdicts)
    text += f'<p class="note">{escape(summary.caveat)}</p>'
    others = [v for v in summary.verdicts if v.variant != summary.focus]
    if others:
        items = "".join(f"<li>{escape(verdict.text)}</li>" for verdict in others)
        text += f"<details><summary>Other variants</summary><ul>{items}</ul></details>"
    return f'<div class="verdict">{text}</div>'


def _contents(summary: Summary, config: str | None) -> str:
    """The table of contents, with the verdict on each pair beside each evaluation."""
    pairs = sorted(summary.pairs, key=lambda pair: pair[0] != summary.focus)
    head = "".join(f"<th>{escape(pair_title(pair))}</th>" for pair in pairs)
    rows = []
    for name, found in summary.evaluations.items():
        cells = "".join(f"<td>{_word(found, pair)}</td>" for pair in pairs)
        link = f'<a href="#eval-{escape(name)}">{escape(found.info.title)}</a>'
        rows.append(f"<tr><th>{link}</th>{cells}</tr>")
    links = [
        ("failures", "Failed or missing", bool(summary.gaps)),
        ("headline", "At a glance", bool(summary.metrics)),
        ("table", "Headline metrics", bool(summary.headline)),
        ("config", "Configuration", config is not None),
        ("versions", "Versions", True),
    ]
    rest = " · ".join(f'<a href="#{key}">{text}</a>' for key, text, present in links if present)
    return (
        '<nav id="contents" aria-label="Contents"><div class="scroll"><table><thead><tr>'
        f"<th>evaluation</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f"<p>{rest}</p></nav>"
    )


def _word(found: EvaluationSummary, pair: tuple[str, str]) -> str:
    """The verdict in a word, and in how many of the primary metrics."""
    if not found.finished:
        return "failed"
    verdict = found.verdict(*pair)
    if verdict is None:
        return '<span class="range">not judged</span>'
    text = f'<span class="{_tone(verdict.verdict)}">{escape(_brief(verdict.verdict))}</span>'
    if verdict.judged < 2:
        return text
    of = f"{verdict.differing} of " if verdict.differing else ""
    less = verdict.corrected < verdict.differing
    corrected = f", {verdict.corrected} if corrected" if less else ""
    return f'{text}<span class="range">in {of}{verdict.judged} metrics{corrected}</span>'


def _tone(verdict: str) -> str:
    return {BETTER: "better", WORSE: "worse", MIXED: "mixed"}.get(verdict, "plain")


def _brief(verdict: str) -> str:
    return verdict.removesuffix(" at 95%")


def _gaps(summary: Summary) -> str:
    if not summary.gap_groups:
        return ""
    items = "".join(
        f"<li><b>{escape(summary.evaluations[gap.eval].info.title)}</b>: {_gap(gap)}</li>"
        for gap in summary.gap_groups
    )
    return (
        '<section class="verdict alert" id="failures"><h2 style="margin-top:.3rem">Failed or '
        "missing</h2><p>The statistics below are without these values; a paired difference leaves "
        f'out a seed that either side lacks.</p><ul class="lines">{items}</ul></section>'
    )


def _gap(gap: GapGroup) -> str:
    return f"{_GAP_WORDS[gap.kind]}, {escape(gap.who)}: {escape(gap.reason)}"


def _glance(figures: Mapping[str, Figure]) -> str:
    if "headline" not in figures:
        return ""
    heading = "At a glance"
    figure = _figure("headline", heading, HEADLINE_CAPTION, figures["headline"])
    return f'<section id="headline"><h2>{heading}</h2>{figure}</section>'


def _figure(key: str, heading: str, caption: str, figure: Figure) -> str:
    svg = figure_svg(figure, key.replace("_", "-"))
    # The natural size in CSS pixels keeps small figures from growing to the full width.
    width = f"max-width:{figure.get_figwidth() * 96:.0f}px"
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(heading)}" style="{width}"', 1)
    return (
        f'<figure><div class="panel">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _evaluation(summary: Summary, found: EvaluationSummary, figures: Mapping[str, Figure]) -> str:
    """The section of one evaluation: question, verdicts, table, figures, caveats."""
    info = found.info
    parts = [f"<h2>{escape(info.title)}</h2>"]
    if info.description:
        parts.append(f"<p>{escape(info.description)}</p>")
    parts += [
        f'<p class="worse">{_gap(gap)}</p>' for gap in summary.gap_groups if gap.eval == info.name
    ]
    if found.finished:
        verdicts = sorted(found.verdicts, key=lambda v: v.variant != summary.focus)
        if verdicts:
            items = "".join(f"<li>{_verdict_line(verdict)}</li>" for verdict in verdicts)
            parts.append(f'<ul class="lines">{items}</ul>')
        parts += [f'<p class="note">{escape(caveat)}</p>' for caveat in found.caveats]
        parts += [_remarks(found), _tables(summary, found)]
        for shown in info.figures:
            if shown.name in figures:
                drawn = _figure(shown.name, shown.heading, shown.caption, figures[shown.name])
                parts.append(f"<h3>{escape(shown.heading)}</h3>{drawn}")
        if found.seconds is not None:
            n = found.finished
            took = f"Took {_duration(found.seconds)} per SAE (mean of {n})."
            parts.append(f'<p class="note">{took}</p>')
    return f'<section id="eval-{escape(info.name)}">{"".join(parts)}</section>'


def _verdict_line(verdict: EvaluationVerdict) -> str:
    pair = f"{verdict.variant} against {verdict.reference}"
    rest = verdict.text.removeprefix(pair)
    seeds, _, said = rest.partition(": ")
    said = said.removeprefix(verdict.verdict)
    word = f'<span class="{_tone(verdict.verdict)}">{escape(verdict.verdict)}</span>'
    said = re.sub(r"\[[^\]]*\]", r'<span class="whole">\g<0></span>', escape(said))
    return f"<b>{escape(pair)}</b>{escape(seeds)}: {word}{said}"


def _remarks(found: EvaluationSummary) -> str:
    if not found.remarks:
        return ""
    items = "".join(f"<li>{escape(remark)}</li>" for remark in found.remarks)
    if len(found.remarks) <= 3:
        return f'<ul class="lines note">{items}</ul>'
    return (
        f"<details><summary>Remarks on {len(found.remarks)} SAEs</summary>"
        f'<ul class="lines note">{items}</ul></details>'
    )


def _tables(summary: Summary, found: EvaluationSummary) -> str:
    """The primary and headline metrics, and the others folded."""
    info = found.info
    first = {*info.keys(info.primary), *info.keys(info.headline)}
    shown = [key for key in found.keys if key in first] or list(found.keys)
    folded = [key for key in found.keys if key not in shown]
    text = _table(summary, shown, with_dz=True, full=False) if shown else ""
    if folded:
        plural = "metric" if len(folded) == 1 else "metrics"
        text += (
            f"<details><summary>{len(folded)} other {plural}</summary>"
            f"{_table(summary, folded, with_dz=True, full=False, with_key=True)}</details>"
        )
    return text


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{number(seconds, 1 if seconds < 10 else 0)} s"
    if seconds < 5400:
        return f"{number(seconds / 60, 1)} min"
    return f"{number(seconds / 3600, 1)} h"


def _headline(summary: Summary) -> str:
    if not summary.headline:
        return ""
    few = ""
    if len(summary.seeds) == 1:
        few = " One seed gives neither a spread nor an interval."
    return (
        '<section id="table"><h2>Headline metrics</h2>'
        f"{_table(summary, summary.headline)}"
        '<p class="note">Left: mean ± sample standard deviation over seeds. Right: mean of the '
        "differences paired by seed with the 95% t-interval; a verdict of better or worse means "
        "that the interval leaves out zero. Variants of one seed share initial weights and "
        "activations, which is why they are paired. The intervals take one metric at a time and "
        "are not corrected for the number of metrics. ↑ higher is better, ↓ lower is better. The "
        "tables of the evaluations add the effect size dz: the mean of the paired differences "
        "over their standard deviation, which a few seeds give only roughly. Bold there: the "
        "primary metrics, which alone decide the verdict; “if corrected” counts the differences "
        "that remain with Bonferroni's correction for their number. “Bootstrap”: 95% interval over "
        "seeds and over passages or questions together, where an evaluation measured both."
        f"{few}</p></section>"
    )


def _table(
    summary: Summary,
    keys: Sequence[str],
    with_dz: bool = False,
    full: bool = True,
    with_key: bool = False,
) -> str:
    styles = variant_styles(summary.variants)
    over = f'<tr class="over"><th></th><th colspan="{len(summary.variants)}">mean ± std</th>'
    if summary.pairs:
        over += f'<th class="first" colspan="{len(summary.pairs)}">paired difference, 95%</th>'
    head = "<th>metric</th>" + "".join(
        f'<th><span class="swatch" style="background:{styles[v][0]}"></span>{escape(v)}</th>'
        for v in summary.variants
    )
    for index, pair in enumerate(summary.pairs):
        head += f"<th{_first(index)}>{escape(pair_title(pair))}</th>"
    rows = []
    for key in keys:
        metric = summary.metrics[key]
        texts = level_texts(metric, len(summary.seeds))
        # An arrow or a bound stays with what it belongs to.
        name = re.sub(" ([↑↓])|([≤≥=]) ", r"\2&nbsp;\1", escape(metric_label(metric, full)))
        if with_key:
            name += f'<span class="range">{escape(key)}</span>'
        cells = "".join(f"<td>{_level(texts[variant])}</td>" for variant in summary.variants)
        for index, pair in enumerate(summary.pairs):
            cells += _difference_cell(metric.difference(*pair), _first(index), with_dz)
        primary = ' class="primary"' if not full and _is_primary(key) else ""
        rows.append(f"<tr><th{primary}>{name}</th>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead>{over}</tr><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _is_primary(key: str) -> bool:
    info = evaluation(key.split("/")[0])
    return key in info.keys(info.primary)


def _level(text: str) -> str:
    value, _, count = text.partition(" (")
    small = f'<span class="range">({escape(count)}</span>' if count else ""
    return escape(value) + small


def _first(index: int) -> str:
    return ' class="first"' if index == 0 else ""


def _difference_cell(difference: Difference | None, attribute: str, with_dz: bool) -> str:
    mean, interval = difference_texts(difference)
    if difference is None or mean == DASH:
        return f"<td{attribute}>{DASH}</td>"
    cell = escape(mean)
    if interval:
        cell += f'<span class="range">{escape(interval)}</span>'
    words = []
    if difference.verdict is not None:
        tone, brief = _tone(difference.verdict), _brief(difference.verdict)
        words.append(f'<span class="{tone}">{escape(brief)}</span>')
    if with_dz and difference.dz is not None:
        words.append(f"dz {number(difference.dz, 1 if abs(difference.dz) >= 10 else 2)}")
    if words:
        cell += f'<span class="tag">{" · ".join(words)}</span>'
    if with_dz and difference.bootstrap95 is not None:
        _, wider = estimate(difference.spread.mean or 0.0, difference.bootstrap95)
        cell += f'<span class="range">bootstrap {escape(wider)}</span>'
    return f"<td{attribute}>{cell}</td>"


def _config(config: str | None) -> str:
    if config is None:
        return ""
    return (
        f'<section id="config"><h2>Configuration</h2><pre>{escape(config.rstrip())}</pre></section>'
    )


def _provenance(summary: Summary, results: Sequence[Result]) -> str:
    rows = "".join(
        f"<tr><td>{escape(library)}</td><td>{escape(', '.join(seen))}</td></tr>"
        for library, seen in summary.versions.items()
    )
    mixed = [library for library, seen in summary.versions.items() if len(seen) > 1]
    text = '<section id="versions"><h2>Versions</h2>'
    if mixed:
        text += (
            f'<p class="worse">Results come from different versions of {escape(", ".join(mixed))}; '
            "a difference between variants may be due to that.</p>"
        )
    text += f'<table class="words" style="width:auto"><tbody>{rows}</tbody></table>'
    text += f"<details><summary>Result files ({len(results)})</summary>{_files(results)}</details>"
    return text + "</section>"


def _files(results: Sequence[Result]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("variant", "seed", "evaluation", "seconds", "fingerprint")
    )
    rows = "".join(
        f"<tr><td>{escape(r.variant)}</td><td>{r.seed}</td><td>{escape(r.eval)}</td>"
        f"<td>{number(r.seconds, 1)}</td><td>{escape(r.fingerprint)}</td></tr>"
        for r in results
    )
    return (
        f'<div class="scroll"><table class="words"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
