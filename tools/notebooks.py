"""Execute the notebooks of ``notebooks/`` and write what they show into them.

    python -m tools.notebooks                    # all of them
    python -m tools.notebooks judge_any_sae      # one of them

Each one runs in an empty folder, with its own kernel. What differs between two machines is left
out: progress bars and warnings, times, and the version of Python. Needs nbclient and ipykernel,
which are in the extra ``dev``.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parents[1] / "notebooks"
PATIENCE = 1200  # seconds for one cell on a busy machine
N_COLOURS = 64
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> Any:
    """The notebook with the outputs of all its cells.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails. The message has its code and the
            traceback.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(
            notebook, timeout=PATIENCE, kernel_name="python3", resources=resources
        ).execute()
    return tidy(notebook)


def tidy(notebook: Any) -> Any:
    """The notebook without what differs between two machines, and with small pictures."""
    notebook.metadata = METADATA
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _joined(cell.outputs)
            for data in (output.data for output in cell.outputs if "data" in output):
                if "image/png" in data:
                    data["image/png"] = _small(data["image/png"])
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """The outputs without the stream of errors; what was printed in pieces is one piece."""
    found: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if output.output_type == "stream" and found and found[-1].output_type == "stream":
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def _small(png: str) -> str:
    """A picture with the few colours that a figure needs, in base64."""
    target = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        picture.convert("RGB").quantize(N_COLOURS).save(target, "PNG", optimize=True)
    return base64.b64encode(target.getvalue()).decode()


def main() -> None:
    import nbformat

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a notebook; by default all")
    names = parser.parse_args().names or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(execute(path), path)
        print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
