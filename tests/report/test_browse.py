"""The page of ``browse``: its files, their sizes, escaping, and what a browser does with it."""

from __future__ import annotations

import html
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.performance.browser import random_latents, random_sae, write_random
from saelens_adaptive_ortho.report import neuronpedia
from saelens_adaptive_ortho.report.page import browse
from saelens_adaptive_ortho.report.page.browse import (
    Corpus,
    Latent,
    Neighbour,
    Passage,
    Sae,
    index,
    label,
    script,
    size_of,
    write_page,
    write_sae,
)
from tests.report.pages import HOSTILE, Requests

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
BAD = HOSTILE.format("window.broken=1")
CONTEXTS = [["The", " cell", BAD, " wall"], [" a", " king", "\n", " ruled"]]
SAE = Sae(
    name=f"bad {BAD}",
    facts=[("model", BAD)],
    corpora=[Corpus("forget", 1.0, 100), Corpus("retain", 1.0, 200)],
    width=2,
    edges=[1.0, 2.0, 4.0, 8.0],
    fired=[[3, 0, 9], [1, 0, 20]],
    largest=[4.5678, 0.0, 1.0],
    groups="fis",
    lean=[2.0, 0.0, -0.1],
    merged=[False, False, True],
    changed=[True, False, True],
)
SILENT = Latent([], [[0, 0, 0], [0, 0, 0]], [Neighbour(0, 0.5, None)], [], [])
LATENTS = [
    Latent(
        passages=[
            Passage(0, 0, 2, 4.5678, [0.0, 1.23456, 4.5678, 0.0, 0.0]),
            Passage(1, 1, 1, 2.0, [0.0, 0.0, 2.0, 0.0, 0.0]),
        ],
        histogram=[[0, 1, 2], [0, 1, 0]],
        neighbours=[Neighbour(2, 0.98765, 12.345)],
        promoted=[(BAD, 3.14159)],
        suppressed=[(" not", -2.0)],
    ),
    SILENT,
    replace(SILENT, passages=[Passage(1, 1, 3, 1.0, [0.5, 0.0, 1.0, 0.0, 0.0])]),
]


def read(path: Path) -> tuple[str, Any]:
    """The name and the value of a file of the page."""
    found = re.fullmatch(r'browse\("([\w/]+)",(.*)\)\n', path.read_text(encoding="utf-8"))
    assert found is not None
    return found[1], json.loads(found[2])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_sae(tmp_path / "latents" / "0", 0, SAE, LATENTS, CONTEXTS)
    write_page(tmp_path, [SAE.name])
    return tmp_path


def test_files_hold_what_is_shown(out: Path) -> None:
    name, latents = read(out / "latents" / "0" / "000.js")
    assert name == "0/000"
    assert latents[0] == [
        [[0, 0, 2, 1, 1.23, 2, 4.57], [1, 1, 1, 2, 2]],
        [1, [1, 2], [1, 0]],
        [[2, 0.988, 12.3]],
        [[BAD, 3.14]],
        [[" not", -2.0]],
    ]
    assert latents[1] == [[], [0, [], []], [[0, 0.5, None]], [], []]
    _, (table, rows) = read(out / "latents" / "0" / "text000.js")
    assert [[table[i] for i in row] for row in rows] == CONTEXTS
    _, found = read(out / "latents" / "0" / "index.js")
    assert found["fired"] == SAE.fired
    assert found["max"] == [4.57, 0, 1]
    assert found["corpora"] == [["forget", 1.0, 100], ["retain", 1.0, 200]]
    assert (found["groups"], found["flags"], found["lean"]) == ("fis", "203", [2.0, 0.0, -0.1])
    assert found["labels"] == [f"{BAD[:16]}\nking", "", "ruled"]
    assert size_of(out) > 1000


def test_label_has_each_token_once_and_no_line_end() -> None:
    contexts = [["a", " b", "\n", "a  c", "x" * 99]]
    passages = [Passage(0, 0, p, v, []) for p, v in [(0, 1.0), (1, 5.0), (2, 4.0), (3, 3.0)]]
    latent = replace(SILENT, passages=[*passages, Passage(0, 0, 1, 2.0, [])])
    assert label(latent, contexts) == "b\na c\na"
    longest = replace(SILENT, passages=[Passage(0, 0, 4, 1.0, [])])
    assert label(longest, contexts) == "x" * 16


def test_latents_and_contexts_are_in_pieces(tmp_path: Path) -> None:
    n, draw = 300, random.Random(0)
    contexts = [[str(i)] * 128 for i in range(512)]
    latents = list(random_latents(n, draw))
    write_sae(tmp_path / "0", 0, random_sae(n, draw), iter(latents), contexts)
    files = sorted(path.name for path in (tmp_path / "0").iterdir())
    texts = [f"text00{i}.js" for i in range(4)]
    assert files == ["000.js", "001.js", "002.js", "index.js", *texts]
    parts = [read(tmp_path / "0" / name)[1] for name in files[:3]]
    assert [len(part) for part in parts] == [128, 128, 44]
    first = latents[128].passages[0]
    assert parts[1][0][0][0][:3] == [first.corpus, first.context, first.position]
    table, rows = read(tmp_path / "0" / "text001.js")[1]
    assert table[rows[2][0]] == "130"


def test_index_of_16k_latents_is_compact() -> None:
    n, draw = 16384, random.Random(0)
    labels = ["\n".join("word" * draw.randint(1, 2) for _ in range(4)) for _ in range(n)]
    text = script("0/index", index(random_sae(n, draw), labels))
    assert len(text.encode()) < 64 * n  # one MiB


def test_page_without_data_is_small(out: Path) -> None:
    assert (out / "index.html").stat().st_size < 40_000


def test_text_of_corpora_never_becomes_markup(out: Path) -> None:
    for path in (out / "latents").rglob("*.js"):
        assert "<" not in path.read_text(encoding="utf-8")
    page = (out / "index.html").read_text(encoding="utf-8")
    assert BAD not in page
    assert page.count("<script") == 2
    assert "innerHTML" not in page
    assert "insertAdjacentHTML" not in page
    assert "document.write" not in page


def test_line_separators_of_unicode_are_escaped() -> None:
    text = script("x", "a\u2028b\u2029c<é")
    assert text == 'browse("x","a\\u2028b\\u2029c\\u003cé")\n'


def test_page_requests_nothing(out: Path) -> None:
    page = (out / "index.html").read_text(encoding="utf-8")
    requests = Requests()
    requests.feed(page)
    assert requests.loads == ["script", "script"]  # both are inline
    assert set(re.findall(r"https?://[\w./]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


def test_home_folder_is_not_told(tmp_path: Path) -> None:
    home = str(Path.home() / "secret")
    sae = replace(SAE, facts=[("SAE", home)], name="x")
    write_sae(tmp_path / "0", 0, sae, LATENTS, CONTEXTS)
    assert home not in (tmp_path / "0" / "index.js").read_text(encoding="utf-8")
    assert "~/secret" in (tmp_path / "0" / "index.js").read_text(encoding="utf-8")


def test_page_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'sae_lens', 'transformer_lens'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from saelens_adaptive_ortho.report.page.browse import write_page\n"
        "write_page(Path(sys.argv[1]), ['a', 'b'])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Latents of 2 SAEs" in (tmp_path / "index.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------ Neuronpedia


def test_neuronpedia_gets_the_same_numbers(tmp_path: Path) -> None:
    origin = neuronpedia.origin("gemma", "blocks.12.hook_resid_post")
    target = tmp_path / "np"
    passed = list(neuronpedia.copied(iter(LATENTS), target, origin, SAE, CONTEXTS))
    assert passed == LATENTS
    batch = json.loads((target / "batch-0.json").read_text(encoding="utf-8"))
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("gemma", 12, SAE.name)
    first, silent, _ = batch["features"]
    assert first["feature_index"] == 0
    assert first["frac_nonzero"] == pytest.approx(4 / 300)
    assert first["freq_hist_data_bar_heights"] == [2, 2]
    assert first["freq_hist_data_bar_values"] == pytest.approx([8**0.5, 32**0.5], abs=1e-5)
    assert (first["pos_str"], first["pos_values"]) == ([BAD], [3.142])
    assert (first["neg_str"], first["neg_values"]) == ([" not"], [-2.0])
    strongest, other = first["activations"]
    assert strongest["tokens"] == CONTEXTS[0]  # the window is cut at the end of the context
    assert strongest["values"] == [0.0, 1.235, 4.568, 0.0]
    assert [strongest[f"bin_{bound}"] for bound in ("min", "max", "contains")] == [-1, 4.568, -1]
    assert other["tokens"] == CONTEXTS[1]
    assert other["values"] == [0.0, 2.0, 0.0, 0.0]
    assert silent["activations"] == []
    assert silent["freq_hist_data_bar_heights"] == []
    assert (batch["features"][2]["n_prompts_total"], first["n_tokens_in_prompt"]) == (2, 4)


# ------------------------------------------------------------------------ in a browser

# Runs what a test appends, step by step, and writes what it returns into the document.
DRIVER = """
<script>
(async () => {
  const pause = () => new Promise((resolve) => setTimeout(resolve, 120));
  const press = async (key) => {
    const target = document.activeElement || document.body;
    target.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
    await pause();
  };
  const type = async (text) => {
    const search = document.getElementById("search");
    search.value = text;
    search.dispatchEvent(new Event("input"));
    await pause();
  };
  const choose = async (id, value) => {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event("change"));
    await pause();
  };
  const title = () => document.querySelector("#detail h2").textContent;
  const rows = () => [...document.querySelectorAll(".row b")].map((b) => b.textContent);
  const ready = () => document.querySelector("#detail h2, #detail .worse");
  for (let i = 0; i < 50 && !ready(); i++) await pause();
  let result;
  try { result = await (async () => { STEPS })(); } catch (error) { result = String(error.stack); }
  document.body.dataset.result = JSON.stringify(result);
  if (parent !== window) parent.postMessage(JSON.stringify(result), "*");
})();
</script>
"""
# A window of a browser cannot be as narrow as a phone, but a frame can.
FRAME = """<!doctype html><body>
<script>onmessage = (event) => { document.body.dataset.result = event.data; };</script>
<iframe src="driven.html" style="width:390px;height:800px"></iframe>
"""


def drive(out: Path, steps: str, hash_: str = "", narrow: bool = False) -> Any:
    """What JavaScript returns that runs in the page."""
    assert CHROMIUM is not None
    page = (out / "index.html").read_text(encoding="utf-8")
    driven = out / "driven.html"
    driven.write_text(page.replace("</body>", DRIVER.replace("STEPS", steps) + "</body>"))
    framed = out / "framed.html"
    framed.write_text(FRAME)
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={out / 'profile'}",
            "--window-size=1200,900",
            "--virtual-time-budget=20000",
            "--dump-dom",
            (framed if narrow else driven).as_uri() + hash_,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found is not None, done.stdout[-2000:] + done.stderr[-500:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 2,000 random latents."""
    folder = tmp_path_factory.mktemp("many")
    write_random(folder, 2000)
    return folder


in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no browser")


@in_browser
def test_hostile_text_is_shown_and_not_run(out: Path) -> None:
    steps = """return {
        broken: window.broken === undefined, scripts: document.scripts.length,
        text: [...document.querySelectorAll(".text")].map((t) => t.textContent),
        chip: document.querySelector(".chips li").firstChild.textContent,
        peak: document.querySelector(".peak").textContent,
        shades: [...document.querySelectorAll(".text span")].map(
            (s) => [s.title, s.style.getPropertyValue("--a")]),
        option: document.querySelector("#sae").textContent,
        facts: document.querySelector("#facts dd").textContent,
        badges: [...document.querySelectorAll(".badge")].map((b) => b.textContent),
        rates: [...document.querySelectorAll(".bars span:nth-child(3n)")].map((s) => s.textContent),
        near: [...document.querySelectorAll(".near td")].map((t) => t.textContent),
    };"""
    found = drive(out, steps)
    assert found["broken"] is True
    assert found["scripts"] == 3
    assert found["text"] == ["".join(CONTEXTS[0]), " a king↵ ruled"]
    assert found["chip"] == found["peak"] == found["option"][4:] == found["facts"] == BAD
    # The largest activation of each passage has the strongest shade.
    assert found["shades"] == [["1.23", "0.269"], ["4.57", "1.000"], ["2", "1.000"]]
    assert found["badges"] == ["forget", "changed group"]
    assert found["rates"] == ["3% of tokens", "0.5% of tokens"]
    assert found["near"] == ["2", "0.99", "12.3", "shared", "ruled"]


@in_browser
def test_keys_search_and_order(many: Path) -> None:
    index = read(many / "latents" / "0" / "index.js")[1]
    best = sorted(range(2000), key=lambda i: (-index["lean"][i], i))
    steps = """
        const seen = {rows: rows(), first: title()};
        await press("j"); await press("j"); await press("ArrowDown"); await press("k");
        seen.third = title(); seen.hash = location.hash;
        seen.picked = document.querySelector(".row.picked b").textContent;
        await press("End"); seen.last = title(); seen.drawn = rows().length;
        await press("Home"); seen.home = title();
        await press("/"); seen.focus = document.activeElement.id;
        await type("1234"); await press("Enter"); seen.found = title();
        seen.count = document.getElementById("count").textContent;
        await press("/"); await press("Escape");
        seen.cleared = document.getElementById("search").value;
        await choose("sort", "max"); seen.max = rows()[0];
        await choose("sort", "merged"); await choose("group", "s"); seen.merged = rows();
        return seen;"""
    seen = drive(many, steps)
    assert seen["rows"][:10] == [str(i) for i in best[:10]]
    assert seen["first"] == seen["home"] == f"Latent {best[0]}"
    assert seen["third"] == f"Latent {best[2]}"
    assert seen["hash"] == f"#0/{best[2]}"
    assert seen["picked"] == str(best[2])
    assert seen["last"] == f"Latent {best[-1]}"
    assert 0 < seen["drawn"] < 40  # only what is in view is in the document
    assert seen["focus"] == "search"
    assert seen["found"] == "Latent 1234"
    assert seen["cleared"] == ""
    assert int(seen["max"]) == max(range(2000), key=lambda i: (index["max"][i], -i))
    merged = [i for i in range(2000) if int(index["flags"][i]) & 1 and index["groups"][i] == "s"]
    by_retain = sorted(merged, key=lambda i: (-index["fired"][1][i], i))
    assert seen["merged"] == [str(i) for i in by_retain[: len(seen["merged"])]]
    assert seen["merged"]


@in_browser
def test_link_opens_a_latent_and_search_finds_tokens(many: Path) -> None:
    index = read(many / "latents" / "0" / "index.js")[1]
    word = index["labels"][777].split("\n")[0]
    has = [str(i) for i in range(2000) if word in index["labels"][i].lower()]
    steps = f"""
        const first = title();
        await type({word.upper()!r});
        return [first, rows()];"""
    first, rows = drive(many, steps, "#0/777")
    assert first == "Latent 777"
    assert set(rows) <= set(has)
    assert "777" in has


@in_browser
def test_narrow_page_shows_the_list_or_the_latent(many: Path) -> None:
    steps = """
        const shown = () => ["section.list", "main", "#back"].map(
            (part) => getComputedStyle(document.querySelector(part)).display !== "none");
        const fits = () => document.documentElement.scrollWidth <= innerWidth;
        const seen = [[innerWidth, ...shown(), fits()]];
        document.querySelectorAll(".row")[3].click(); await pause();
        seen.push([title(), ...shown(), fits()]);
        document.getElementById("back").click(); await pause();
        seen.push([location.hash, ...shown(), fits()]);
        await press("j"); seen.push([location.hash !== "#0", ...shown(), fits()]);
        await press("Enter"); seen.push([title(), ...shown(), fits()]);
        await press("Escape"); seen.push([location.hash, ...shown(), fits()]);
        return seen;"""
    index = read(many / "latents" / "0" / "index.js")[1]
    best = sorted(range(2000), key=lambda i: (-index["lean"][i], i))
    in_list, in_latent = [True, False, False, True], [False, True, True, True]
    assert drive(many, steps, narrow=True) == [
        [390, *in_list],
        [f"Latent {best[3]}", *in_latent],
        ["#0", *in_list],
        [True, *in_list],
        [f"Latent {best[4]}", *in_latent],
        ["#0", *in_list],
    ]


@in_browser
def test_missing_file_is_explained(out: Path) -> None:
    (out / "latents" / "0" / "text000.js").unlink()
    said = drive(out, "return document.querySelector('#detail').textContent;")
    assert said == "latents/0/text000.js cannot be read. Is the folder complete?"


def test_every_part_of_the_page_is_packaged() -> None:
    templates = Path(browse.__file__).parent / "templates"
    assert {"browse.html.j2", "browse.css", "browse.js"} <= {p.name for p in templates.iterdir()}
