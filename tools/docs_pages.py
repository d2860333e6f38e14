"""A hook of MkDocs: the site has the pages of the repository at the places where they are in it.

So every relative link is right on the site, in a clone, and where the code is hosted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
STUDIES = ("evals/**/*.md", "evals/**/*.png", "evals/**/*.py")
PATTERNS = ("*.md", "*.cff", "docs/*.*", "tests/*.md", "notebooks/*.ipynb", *STUDIES)


def on_files(files: Files, config: Any) -> Files:
    """Replace the files of ``docs_dir`` by those of the repository; those of the theme stay."""
    paths = sorted({path for pattern in PATTERNS for path in ROOT.glob(pattern)})
    ours = {file.src_uri for file in files if (ROOT / "docs" / file.src_uri).is_file()}
    kept = [file for file in files if file.src_uri not in ours]
    site = config["site_dir"]
    urls = config["use_directory_urls"]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return Files([*kept, *(File(name, str(ROOT), site, urls) for name in names)])
