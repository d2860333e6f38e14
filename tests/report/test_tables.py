"""The tables of a run for the terminal and for markdown."""

from __future__ import annotations

from pathlib import Path

from saelens_adaptive_ortho.evaluations import BUILT_IN
from saelens_adaptive_ortho.report.page.run import render_page
from saelens_adaptive_ortho.report.statistics import Summary, summarise
from saelens_adaptive_ortho.report.tables import (
    main_keys,
    markdown_table,
    markdown_verdicts,
    short_table,
)
from saelens_adaptive_ortho.report.verdicts import found_text
from saelens_adaptive_ortho.results import (
    Result,
    load_results,
)
from tests.report.pages import plain
from tests.report.runs import (
    ANGLE,
    CLEAR,
    DAMAGE,
    SMALL,
    UNCLEAR,
    core,
    differing,
    full_run,
    shown,
)


def test_markdown_row(tmp_path: Path) -> None:
    table = markdown_table(summarise(load_results(full_run(tmp_path))), [ANGLE, "core/absent"])
    lines = table.splitlines()
    assert lines[0] == "| metric | baseline | adaptive | adaptive − baseline |"
    # Differences 10, 10.1, 10.2: half width 0.1 · 4.302653 / √3 = 0.248.
    assert lines[2] == (
        "| mean principal angle (°) ↑ | 51.0 ± 1.0 | 61.1 ± 1.1 | "
        "+10.10 [+9.85, +10.35] **better** |"
    )
    assert lines[3] == "| core/absent | – | – | – |"


def test_a_verdict_per_evaluation(summary: Summary) -> None:
    text = shown(summary, 150)
    listed = text[text.index("By evaluation") :]
    judged = [info for info in BUILT_IN if info.primary]
    for info in judged:
        assert info.title.split()[0] in listed
    verdicts = markdown_verdicts(summary)
    bullets = [line for line in verdicts.splitlines() if line.startswith("- ")]
    assert len(judged) >= 9
    assert len(bullets) == len(judged)
    bullet = bullets[[info.name for info in judged].index("sparse_probing")]
    assert bullet.startswith("- **Sparse probing**: adaptive against baseline, 3 seeds: ")
    assert "; adaptive against fixed, 3 seeds: " in bullet
    assert "fixed against baseline" not in verdicts


def five_variants(seeds: int = 4) -> list[Result]:
    """Results of the usual variants: groups and adaptive forget more and reconstruct a bit less."""
    results: list[Result] = []
    gains = {"baseline": 0.0, "fixed": 0.0, "directions": 0.0, "groups": 4.0, "adaptive": 4.5}
    for variant, gain in gains.items():
        for seed in range(seeds):
            shift = 0.01 * (seed - 1) * (variant != "baseline")
            reconstruction = {
                "pooled/explained_variance": 0.92 + 0.001 * seed + 0.01 * shift - 0.002 * gain,
                "pooled/ce_loss_score": 0.97 + 0.001 * seed + 0.01 * shift,
                "pooled/frac_alive": 0.9 + 5.0 * shift,
                "pooled/l0": 27.0 + seed,
            }
            damage = {name: 2.0 + 0.1 * seed + gain + shift for name in DAMAGE}
            results += [
                Result("core", variant, seed, metrics=reconstruction),
                Result("unlearning", variant, seed, metrics=damage),
            ]
    return results


def test_short_table() -> None:
    lines = short_table(summarise(five_variants())).splitlines()
    assert lines[0] == "| metric | baseline | fixed | directions | groups | adaptive |"
    labels = [line.split(" | ")[0].removeprefix("| ") for line in lines[2:8]]
    assert labels == [
        "explained variance, pooled ↑",
        "CE loss score, pooled ↑",
        "fraction alive, pooled ↑",
        *(
            f"unlearning: forget damage at retain damage ≤ {n} nats ↑"
            for n in (0.05, "0.10", "0.20")
        ),
    ]
    baseline, *others = lines[5].removesuffix(" |").split(" | ")[1:]
    assert baseline == "2.15 ± 0.13"
    # Shifts -0.01, 0, 0.01, 0.02: mean 0.005, half width 3.182446 · 0.01291 / 2 = 0.0205.
    assert others[0] == "2.15 ± 0.14<br>+0.005 [−0.016, +0.026] equivalent within 0.3 nats"
    assert others[3] == "6.65 ± 0.14<br>+4.505 [+4.484, +4.526] **better**"
    assert "inconclusive" in lines[4]
    text = "\n".join(lines[8:])
    assert "**Found.** adaptive against baseline over 4 paired seeds: better in " in text
    assert "Holm's correction over the 6 headline and primary metrics" in text
    assert "no evidence of equality" in text
    assert "corrected" not in lines[-1].split("Inconclusive")[0]
    assert len(markdown_table(summarise(five_variants())).splitlines()[0].split(" | ")) == 1 + 5 + 5


def test_what_was_found_and_what_not() -> None:
    shifts = {DAMAGE[0]: CLEAR, DAMAGE[1]: CLEAR, DAMAGE[2]: UNCLEAR}
    cost = {"pooled/explained_variance": [-d for d in CLEAR], "pooled/ce_loss_score": SMALL}
    results = differing("unlearning", shifts, "baseline") + differing("core", cost, "baseline")
    results += differing("sparse_probing", {"sae_top_1_accuracy": SMALL}, "baseline")
    assert found_text(summarise(results)) == (
        "adaptive against baseline over 3 paired seeds: better in unlearning: forget damage at "
        "retain damage ≤ 0.05 / 0.10 nats (+0.310 / +0.310); worse in explained variance (−0.310); "
        "inconclusive, so nothing is shown, in CE loss score, unlearning: forget damage at retain "
        "damage ≤ 0.20 nats, sparse probing: accuracy, k = 1."
    )
    small = {"pooled/explained_variance": (-0.001, 0.0, 0.001)}
    assert found_text(summarise(differing("core", small, "baseline"))) == (
        "adaptive against baseline over 3 paired seeds: equivalent in explained variance "
        "(0.0000 within 0.004)."
    )
    unknown = differing("unlearning", {DAMAGE[0]: UNCLEAR}, "baseline")
    assert "3 paired seeds: inconclusive, so nothing is shown, in " in found_text(
        summarise(unknown)
    )
    two = summarise([*core("baseline", [0.5, 0.6]), *core("adaptive", [0.9, 0.8])])
    assert found_text(two).endswith(
        "over 2 paired seeds: too few seeds for a verdict on 1 primary metric."
    )
    assert "A verdict needs at least 3 seeds." in short_table(two)
    assert "nothing to compare" in short_table(summarise(core("baseline", [0.5])))
    seconds = summarise(differing("training", {"train_seconds": CLEAR}, "baseline"))
    assert found_text(seconds) == "No primary metric was measured for adaptive against baseline."


def test_references_without_an_sae() -> None:
    references = {"contrastive PCA": {DAMAGE[1]: 1.66}, "random latents": {DAMAGE[0]: 0.1234}}
    results = [
        Result(
            "unlearning", r.variant, r.seed, metrics=r.metrics, details={"references": references}
        )
        for r in differing("unlearning", {DAMAGE[0]: CLEAR, DAMAGE[1]: CLEAR}, "baseline")
    ]
    summary = summarise(results)
    for table in (short_table(summary), markdown_table(summary)):
        lines = table.splitlines()
        start = lines.index("| without an SAE | contrastive PCA | random latents |")
        assert lines[start + 2 : start + 4] == [
            "| unlearning: forget damage at retain damage ≤ 0.05 nats ↑ | – | 0.123 |",
            "| unlearning: forget damage at retain damage ≤ 0.10 nats ↑ | 1.66 | – |",
        ]
    assert "contrastive PCA" in plain(render_page(results))
    without = summarise(differing("unlearning", {DAMAGE[0]: CLEAR}, "baseline"))
    assert "without an SAE" not in short_table(without) + markdown_table(without)


def test_terminal_shows_the_main_metrics() -> None:
    short = shown(summarise(five_variants()), 80, full=False)
    lines = short.splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) <= 80
    assert "adaptive − baseline" in short
    assert "groups − baseline" not in short  # only the focus
    assert "better in unlearning: forget damage" in " ".join(short.split())
    assert "forget damage at retain damage ≤ 0.20" not in short.split("Difference")[0]
    assert "report RUN --full" in short
    full = shown(summarise(five_variants()), 80)
    assert "groups − baseline" in shown(summarise(five_variants()), 160)
    assert "Holm's correction" in full
    assert "By evaluation" in full


def test_terminal_says_once_that_seeds_are_few() -> None:
    short = shown(summarise(five_variants(seeds=1)), 80, full=False)
    assert " ".join(short.split()).count("too few") == 1
    assert "1 seed: too few for verdicts, which need 3 seeds" in " ".join(short.split())
    assert "Difference" not in short
    full = shown(summarise(five_variants(seeds=1)), 80)
    assert "too few" not in full[full.index("Difference") :].split("Against")[0]
    alone = shown(summarise(core("baseline", [0.5])), full=False)
    assert "too few" not in alone
    assert "nothing to compare" in alone


def test_an_evaluation_without_main_metrics_shows_its_primary_ones() -> None:
    shifts = {"mean_cosine": CLEAR, "other": CLEAR}
    unknown = summarise(differing("later_probe", shifts, "baseline"))
    assert main_keys(unknown) == []
    training = summarise(differing("training", {"train_seconds": CLEAR}, "baseline"))
    assert main_keys(training) == []
    glance = {"sae_top_5_accuracy": CLEAR, "sae_top_1_accuracy": CLEAR}
    probing = summarise(differing("sparse_probing", glance, "baseline"))
    assert main_keys(probing) == ["sparse_probing/sae_top_5_accuracy"]
    rest = summarise(differing("sparse_probing", {"sae_top_1_accuracy": CLEAR}, "baseline"))
    assert main_keys(rest) == ["sparse_probing/sae_top_1_accuracy"]
