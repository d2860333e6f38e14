"""Take ``docs/browse.png``, a picture of a page of ``adaptive-ortho browse``, with Chromium.

    adaptive-ortho compare configs/demo.yaml && adaptive-ortho browse runs/demo
    python -m tools.shoot_browse runs/demo/browse

The picture is of the first latent of the list, or of another one: ``--latent 12``. ``--narrow`` and
``--dark`` show the page as on a phone and in dark colours; they need another ``--to``.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

TARGET = Path(__file__).parents[1] / "docs" / "browse.png"
SIZE, NARROW = (1180, 860), (390, 844)
DARK = ("--blink-settings=preferredColorScheme=0", "--force-dark-mode")


def shoot(page: Path, to: Path, latent: str, narrow: bool = False, dark: bool = False) -> None:
    """Write a picture of the page.

    Args:
        page: folder of the page.
        to: PNG file.
        latent: number of a latent; empty for what the page shows first.
        narrow: as wide as a phone.
        dark: in dark colours.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("needs chromium")
    width, height = NARROW if narrow else SIZE
    address = f"{(page / 'index.html').resolve().as_uri()}#0{f'/{latent}' if latent else ''}"
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


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture of a page of adaptive-ortho browse.")
    parser.add_argument("page", type=Path, help="folder of the page")
    parser.add_argument("--to", type=Path, default=TARGET)
    parser.add_argument("--latent", default="")
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--dark", action="store_true")
    args = parser.parse_args()
    shoot(args.page, args.to, args.latent, args.narrow, args.dark)


if __name__ == "__main__":
    main()
