"""Take the pictures of the documentation: the report of a run, and a page of ``browse``.

    adaptive-ortho compare configs/demo.yaml && adaptive-ortho browse runs/demo
    python -m tools.shoot report runs/demo           # docs/report.png and docs/report_dark.png
    python -m tools.shoot browse runs/demo/browse    # docs/browse.png

It needs Chromium. The dark picture of the report shows what a point is (``--point``), and the page
of ``browse`` shows the first latent of its list (``--latent``). ``--narrow`` and ``--dark``
show a page as on a phone and in dark colours; they need another ``--to``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
NARROW = (390, 844)
SIZES = {"report": (1180, 1040), "browse": (1180, 860)}
DARK = ("--blink-settings=preferredColorScheme=0", "--force-dark-mode")
POINT = """<script>
document.querySelectorAll("#tradeoff .points circle")[{}]
  ?.dispatchEvent(new PointerEvent("pointerover", {{ bubbles: true }}));
</script>"""


def shoot(address: str, to: Path, size: tuple[int, int], dark: bool = False) -> None:
    """Write a picture of the beginning of a page.

    Args:
        address: address of the page.
        to: PNG file with at most 256 colours.
        size: width and height in pixels.
        dark: in dark colours.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("needs chromium")
    width, height = size
    with tempfile.TemporaryDirectory() as folder:
        # A window cannot be as narrow as a phone, but a frame can.
        host, shot = Path(folder) / "host.html", Path(folder) / "shot.png"
        frame = f'<iframe src="{address}" style="border:0;width:{width}px;height:{height}px">'
        host.write_text(f'<body style="margin:0">{frame}', encoding="utf-8")
        command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=8000"]
        command += [f"--window-size={max(width, 600)},{height}", f"--screenshot={shot}"]
        command += [*(DARK if dark else ()), host.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        picture = Image.open(shot).convert("RGB").crop((0, 0, width, height))
        few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(to, optimize=True)


def shoot_report(run: Path, to: Path, size: tuple[int, int], dark: bool, point: int) -> None:
    """Write a picture of the first screen of a report, with the words of a point of its figure.

    Args:
        run: a run folder.
        to: PNG file.
        size: width and height in pixels.
        dark: in dark colours.
        point: number of the point from the left; a negative one shows no words.
    """
    page = (run / "report.html").read_text(encoding="utf-8")
    if point >= 0:
        page = page.replace("</body>", f"{POINT.format(point)}</body>")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "report.html"
        copy.write_text(page, encoding="utf-8")
        shoot(copy.as_uri(), to, size, dark)


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the pages of this package.")
    parser.add_argument("kind", choices=SIZES)
    parser.add_argument("folder", type=Path, help="a run folder, or the folder of a browse page")
    parser.add_argument("--to", type=Path, help="PNG file; by default those of the documentation")
    parser.add_argument("--latent", default="", help="latent of the page")
    parser.add_argument("--point", type=int, default=0, help="point of the report's first figure")
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    size = NARROW if args.narrow else SIZES[args.kind]
    if args.kind == "browse":
        page = (args.folder / "index.html").resolve().as_uri()
        address = f"{page}#0{f'/{args.latent}' if args.latent else ''}"
        shoot(address, args.to or DOCS / "browse.png", size, args.dark)
    elif args.to is not None:
        shoot_report(args.folder, args.to, size, args.dark, args.point)
    else:
        shoot_report(args.folder, DOCS / "report.png", size, False, -1)
        shoot_report(args.folder, DOCS / "report_dark.png", size, True, args.point)


if __name__ == "__main__":
    main()
