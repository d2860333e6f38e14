"""The work of ``adaptive-ortho browse``: measure the latents of each SAE, and write the page."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from saelens_adaptive_ortho.commands.browse import BrowseOptions
from saelens_adaptive_ortho.errors import reject
from saelens_adaptive_ortho.files import (
    atomic_directory,
    check_space,
    check_writable,
    megabytes,
    recover_directory,
    remove_litter,
    without_home,
    write_json,
)
from saelens_adaptive_ortho.judging import browsing
from saelens_adaptive_ortho.judging.contract import EvalContext, Workbench
from saelens_adaptive_ortho.judging.options import JudgingOptions
from saelens_adaptive_ortho.judging.subjects import (
    Subject,
    distinct_subjects,
    find_subject,
    workbench_for,
)
from saelens_adaptive_ortho.locks import run_lock
from saelens_adaptive_ortho.maths.grouping import FORGET, INACTIVE, RETAIN, SHARED
from saelens_adaptive_ortho.progress import progress
from saelens_adaptive_ortho.report import neuronpedia
from saelens_adaptive_ortho.report.page import browse as page
from saelens_adaptive_ortho.report.page.run import BROWSER, write_report
from saelens_adaptive_ortho.results import ResultError, versions
from saelens_adaptive_ortho.settings import check_one_of

ABOUT = "about.json"  # in the folder of the page's files; says that this command wrote them
NEURONPEDIA = "neuronpedia"
LETTERS = {INACTIVE: "i", FORGET: "f", RETAIN: "r", SHARED: "s"}
# Options that the commands for finished SAEs share.
JUDGING = ("model", "forget", "retain", "retain_share", "context_size", "device", "dtype")


class Cost(NamedTuple):
    """What the page of some SAEs takes, roughly.

    Attributes:
        latents: number of latents of all SAEs.
        contexts: number of contexts that are read for each SAE, at most.
        disk: bytes of the files.
        memory: bytes that the measurements of the largest SAE take.
    """

    latents: int
    contexts: int
    disk: int
    memory: int


def browse(options: BrowseOptions, say: Callable[[str], None] = print) -> Path:
    """Measure each SAE, write the page, and return its path.

    Raises:
        ConfigError: an option cannot work. This is checked before anything is measured.
        StorageError: a file could not be written. An earlier page is still there.
    """
    if not options.saes:
        raise reject("RUN_OR_SAE", None, "name an SAE, or a run folder.")
    if options.export is not None:
        check_one_of("--export", options.export, (NEURONPEDIA,))
    found = [find_subject(text, options.variant, options.seed) for text in options.saes]
    subjects = distinct_subjects(found)
    run = _run_folder(options.saes[0], subjects[0])
    out = _out(options, run)
    check_writable("--out", out)
    with run_lock("--out", out, "adaptive-ortho browse"), ExitStack() as stack:
        remove_litter([out])
        recover_directory(out / page.FOLDER)
        _check_ours(out)
        if run is not None and os.access(run, os.W_OK):
            cache = run  # with the tokenised corpora of the run
        else:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        given = {name: getattr(options, name) for name in JUDGING}
        bench = workbench_for(subjects, JudgingOptions(out=cache, **given))
        if not bench.corpora:
            raise reject("--forget and --retain", None, "the page shows text; name corpora.")
        expected = cost(subjects, bench, options)
        check_space("--out", out / page.FOLDER, expected.disk)
        say(in_words(expected))
        _write(options, subjects, bench, out, _report_of(run, out), say)
    file = out / page.PAGE
    _link_report(run, out, say)
    say(f"Page: {file} ({megabytes(page.size_of(out / page.FOLDER))} with its files)")
    return file


def cost(subjects: list[Subject], bench: Workbench, options: BrowseOptions) -> Cost:
    """An estimate from the numbers of latents, contexts and passages."""
    widths = [int(subject.load().cfg.d_sae) for subject in subjects]
    contexts = sum(min(len(c.train), options.contexts) for c in bench.corpora)
    passages = len(bench.corpora) * options.passages
    window = 2 * options.width + 1
    # Characters in the files. A latent is active on few of the tokens of a passage.
    passage = 16 + 2 * window
    latent = 200 + passages * passage + 24 * options.neighbours + 30 * options.tokens
    if options.export is not None:
        latent += 1000 + passages * (100 + 13 * window)
    text = 6 * contexts * bench.context_size
    kept = 4 * passages * (window + 5) + 4 * browsing.N_BINS * len(bench.corpora)
    return Cost(
        latents=sum(widths),
        contexts=contexts,
        disk=sum(widths) * latent + len(widths) * text,
        memory=max(widths) * kept,
    )


def in_words(expected: Cost) -> str:
    """The cost in a line."""
    return (
        f"{expected.latents:,} latents on {expected.contexts:,} contexts: about "
        f"{megabytes(expected.disk)} of files, and {megabytes(expected.memory)} of memory beside "
        "model and SAE."
    )


def _run_folder(text: str, subject: Subject) -> Path | None:
    """The run folder that the user named; None if it is an SAE itself."""
    run = Path(text).expanduser()
    named = subject.path is not None and run.is_dir() and run.resolve() != subject.path
    return run if named else None


def _out(options: BrowseOptions, run: Path | None) -> Path:
    if options.out is not None:
        return options.out.expanduser()
    if run is None or len(options.saes) > 1:
        raise reject("--out", None, "name a folder for the page.")
    return run / "browse"


def _report_of(run: Path | None, out: Path) -> str:
    """The address of the run's report as the page sees it; empty if its report has no such tab."""
    if run is None or (run / BROWSER).resolve() != (out / page.PAGE).resolve():
        return ""
    return "../report.html" if (run / "report.html").is_file() else ""


def _link_report(run: Path | None, out: Path, say: Callable[[str], None]) -> None:
    """Write the report of the run again, now that it can link to the page."""
    if run is None or not _report_of(run, out):
        return
    try:
        say(f"Report: {write_report(run)}")
    except ResultError as error:
        say(f"The report does not link to the page yet: {error}")


def _check_ours(out: Path) -> None:
    """Refuse to replace files that this command did not write."""
    ours = (out / page.FOLDER / ABOUT).is_file()
    for name in (page.PAGE, page.FOLDER, NEURONPEDIA):
        if (out / name).exists() and not ours:
            rule = f"holds another {name}, which would be replaced. Name another folder."
            raise reject("--out", str(out), rule)


def _write(
    options: BrowseOptions,
    subjects: list[Subject],
    bench: Workbench,
    out: Path,
    report: str,
    say: Callable[[str], None],
) -> None:
    names = [_name(subject) for subject in subjects]
    with _folders(options, out) as (folder, exported):
        for number, subject in enumerate(subjects):
            say(f"Reading {subject.source}")
            _write_one(options, subject, bench, folder, number, exported)
        about = {"saes": [s.source for s in subjects], "versions": versions()}
        write_json(folder / ABOUT, without_home(about))
    page.write_page(out, names, report)


@contextmanager
def _folders(options: BrowseOptions, out: Path) -> Iterator[tuple[Path, Path | None]]:
    """Folders for the files of the page and for the export, written completely or not at all."""
    survives = "An earlier page is unchanged."
    with ExitStack() as stack:
        exported = None
        if options.export == NEURONPEDIA:
            exported = stack.enter_context(atomic_directory(out / NEURONPEDIA, survives))
        yield stack.enter_context(atomic_directory(out / page.FOLDER, survives)), exported


def _write_one(
    options: BrowseOptions,
    subject: Subject,
    bench: Workbench,
    folder: Path,
    number: int,
    exported: Path | None,
) -> None:
    """Measure one SAE and write its files."""
    context = subject.on(bench, folder)
    settings = browsing.Settings(
        n_contexts=options.contexts,
        n_passages=options.passages,
        width=options.width,
        n_neighbours=options.neighbours,
        n_tokens=options.tokens,
        domain_ratio=options.domain_ratio,
        batch_size_prompts=options.batch_size_prompts,
    )
    seen = browsing.survey(context, settings)
    pieces = browsing.Pieces(bench.model.tokenizer)
    contexts = [pieces.of_text(ids) for part in seen.contexts for ids in part.tolist()]
    sae = described(_name(subject), subject.source, context, seen, options.width)
    total = len(sae.largest)
    latents = iter(progress(rows(seen, pieces), "Writing", total, unit=" latents"))
    if exported is not None:
        origin = neuronpedia.origin(bench.model_label, context.load().cfg.metadata.hook_name)
        target = exported / f"{number}-{subject.variant}"
        latents = neuronpedia.copied(latents, target, origin, sae, contexts)
    page.write_sae(folder / str(number), number, sae, latents, contexts)


def _name(subject: Subject) -> str:
    in_run = subject.path is not None and subject.path.parent.name == f"seed{subject.seed}"
    return f"{subject.variant}, seed {subject.seed}" if in_run else subject.variant


def described(
    name: str, source: str, context: EvalContext, seen: browsing.Survey, width: int
) -> page.Sae:
    """What the list shows of the latents of an SAE."""
    cfg = context.load().cfg
    size = f"{cfg.d_sae:,} latents of {cfg.d_in:,} dimensions"
    read = zip(seen.contexts, seen.corpora, strict=True)
    texts = {c.domain: context.bench.texts[c.domain].path for c in context.corpora}
    return page.Sae(
        name=name,
        facts=[
            ("SAE", f"{source} ({cfg.architecture()}, {size})"),
            ("model", f"{context.bench.model_name}, {cfg.metadata.hook_name}"),
            *((f"corpus {domain}", str(path)) for domain, path in texts.items()),
            ("read", ", ".join(f"{len(c)} contexts of {d}" for c, d in read)),
        ],
        corpora=[
            page.Corpus(c.domain, c.share, n)
            for c, n in zip(context.corpora, seen.n_tokens.tolist(), strict=True)
        ],
        width=width,
        edges=browsing.edges().tolist(),
        fired=seen.fired.tolist(),
        largest=seen.largest.tolist(),
        groups="" if seen.groups is None else "".join(LETTERS[i] for i in seen.groups.tolist()),
        lean=[] if seen.lean is None else seen.lean.tolist(),
        merged=seen.merged.tolist(),
        changed=seen.changed.tolist(),
    )


def rows(seen: browsing.Survey, pieces: browsing.Pieces) -> Iterator[page.Latent]:
    """What the page shows of each latent."""
    firsts = [0]
    for contexts in seen.contexts[:-1]:
        firsts.append(firsts[-1] + len(contexts))
    for start in range(0, seen.fired.shape[1], page.LATENTS_PER_FILE):
        yield from _block(seen, pieces, firsts, slice(start, start + page.LATENTS_PER_FILE))


def _block(
    seen: browsing.Survey, pieces: browsing.Pieces, firsts: list[int], part: slice
) -> Iterator[page.Latent]:
    kept = seen.passages
    values, places, windows = (
        x[:, part].transpose(0, 1).tolist() for x in (kept.values, kept.places, kept.windows)
    )
    histograms = seen.histograms[:, part].transpose(0, 1).tolist()
    found = (seen.neighbours, seen.cosines, seen.lifts)
    near = zip(*(x[part].tolist() for x in found), strict=True)
    lens = seen.lens and [x[part].tolist() for x in seen.lens]
    for row, (neighbours, cosines, lifts) in enumerate(near):
        yield page.Latent(
            passages=[
                page.Passage(corpus, firsts[corpus] + context, position, value, window)
                for corpus, kinds in enumerate(
                    zip(values[row], places[row], windows[row], strict=True)
                )
                for value, (context, position), window in zip(*kinds, strict=True)
                if value > 0
            ],
            histogram=histograms[row],
            neighbours=[
                page.Neighbour(j, cosine, lift if lift == lift else None)
                for j, cosine, lift in zip(neighbours, cosines, lifts, strict=True)
            ],
            promoted=_tokens(pieces, lens[0][row], lens[1][row]) if lens else [],
            suppressed=_tokens(pieces, lens[2][row], lens[3][row]) if lens else [],
        )


def _tokens(
    pieces: browsing.Pieces, ids: list[int], logits: list[float]
) -> list[tuple[str, float]]:
    return [(pieces.of_token(i), logit) for i, logit in zip(ids, logits, strict=True)]
