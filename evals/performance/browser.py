"""How soon the page of ``adaptive-ortho browse`` shows its list, in headless Chromium.

    python -m evals.performance.browser --latents 16384

The page is made of random numbers and words, of the size that an SAE of so many latents has. Times
are in milliseconds since the navigation began: the first paint, the first rows of the list, and the
first latent with its passages.
"""

from __future__ import annotations

import argparse
import html
import json
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from saelens_adaptive_ortho.files import write_json
from saelens_adaptive_ortho.report.page.browse import (
    FOLDER,
    PAGE,
    Corpus,
    Latent,
    Neighbour,
    Passage,
    Sae,
    size_of,
    write_page,
    write_sae,
)

WIDTH, PASSAGES, CONTEXTS, LENGTH = 16, 5, 256, 128
BROWSERS = ("chromium", "google-chrome", "chrome")
WATCH = """
<script>
(() => {
  const times = {};
  const watch = () => {
    const now = Math.round(performance.now());
    const paint = performance.getEntriesByType("paint").map((p) => p.startTime);
    if (paint.length && !("paint" in times)) times.paint = Math.round(Math.min(...paint));
    if (document.querySelector(".row") && !("list" in times)) times.list = now;
    if (document.querySelector("#detail h2") && !("latent" in times)) times.latent = now;
    if (Object.keys(times).length === 3) document.body.dataset.times = JSON.stringify(times);
    else setTimeout(watch, 5);
  };
  watch();
})();
</script>
"""


def random_sae(n: int, draw: random.Random) -> Sae:
    """An SAE of n latents."""
    return Sae(
        name="random",
        facts=[("SAE", "random numbers")],
        corpora=[Corpus("forget", 1.0, 32_000), Corpus("retain", 1.0, 32_000)],
        width=WIDTH,
        edges=[2 ** (b / 4 - 12) for b in range(105)],
        fired=[[int(10 ** draw.uniform(0, 3.5)) for _ in range(n)] for _ in range(2)],
        largest=[draw.uniform(1, 60) for _ in range(n)],
        groups="".join(draw.choices("frsi", k=n)),
        lean=[draw.uniform(-10, 10) for _ in range(n)],
        merged=[draw.random() < 0.05 for _ in range(n)],
        changed=[draw.random() < 0.05 for _ in range(n)],
    )


def random_contexts(draw: random.Random) -> list[list[str]]:
    """Contexts of two corpora, of random words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [" " + "".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(5000)]
    return [draw.choices(words, k=LENGTH) for _ in range(2 * CONTEXTS)]


def random_latents(n: int, draw: random.Random) -> Iterator[Latent]:
    """The latents of :func:`random_sae`."""
    for _ in range(n):
        passages = [
            Passage(
                corpus=corpus,
                context=corpus * CONTEXTS + draw.randrange(CONTEXTS),
                position=draw.randrange(LENGTH),
                value=draw.uniform(1, 60),
                window=[draw.uniform(0, 60) * (draw.random() < 0.2) for _ in range(2 * WIDTH + 1)],
            )
            for corpus in (0, 1)
            for _ in range(PASSAGES)
        ]
        counts = [[0] * 60 + [draw.randrange(500) for _ in range(16)] + [0] * 28] * 2
        near = [Neighbour(draw.randrange(n), draw.random(), draw.random()) for _ in range(8)]
        tokens = [(" token", draw.uniform(0, 20)) for _ in range(8)]
        yield Latent(passages, counts, near, tokens, tokens)


def write_random(out: Path, n: int, seed: int = 0) -> None:
    """Write the page of an SAE of n random latents."""
    draw = random.Random(seed)
    contexts = random_contexts(draw)
    sae = random_sae(n, draw)
    write_sae(out / FOLDER / "0", 0, sae, random_latents(n, draw), contexts)
    write_page(out, [sae.name])


def times(out: Path, browser: str) -> dict[str, int]:
    """First paint, first rows, and first latent of a page, in milliseconds."""
    page = (out / PAGE).read_text(encoding="utf-8")
    timed = out / "timed.html"
    timed.write_text(page.replace("</body>", f"{WATCH}</body>"), encoding="utf-8")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--timeout=8000"]
        command += [f"--user-data-dir={profile}", "--dump-dom", timed.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    timed.unlink()
    found = re.search(r'data-times="([^"]*)"', done.stdout)
    if found is None:
        raise SystemExit(f"{browser} did not finish the page: {done.stderr[-500:]}")
    return json.loads(html.unescape(found[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description="How soon the page of latents is shown.")
    parser.add_argument("--latents", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for the page; by default it is deleted")
    parser.add_argument("--json", type=Path, help="file for the measurements")
    args = parser.parse_args()
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("needs chromium")
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        write_random(out, args.latents)
        index = (out / FOLDER / "0" / "index.js").stat().st_size
        print(f"{args.latents:,} latents: {size_of(out) / 1e6:.1f} MB, index {index / 1e3:.0f} kB")
        measured = [times(out, browser) for _ in range(args.repeats)]
        for found in measured:
            print(json.dumps(found))
        if args.json is not None:
            sizes = {"latents": args.latents, "index_bytes": index, "bytes": size_of(out)}
            write_json(args.json, {**sizes, "milliseconds": measured})


if __name__ == "__main__":
    main()
