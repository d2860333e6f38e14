"""SAEBench TPP: does ablating a class's latents hurt only the probe of that class?"""

from __future__ import annotations

from saelens_adaptive_ortho.evaluations.tpp import Settings, read_metrics
from saelens_adaptive_ortho.judging.contract import EvalContext, EvaluationError, Outcome
from saelens_adaptive_ortho.judging.saebench.scr_and_tpp import (
    CAVEAT,
    OWN_SIZES,
    n_values,
    run_eval,
)
from saelens_adaptive_ortho.judging.saebench.session import prepared_sae, session
from saelens_adaptive_ortho.judging.saebench.tasks import (
    Texts,
    context_length,
    file_texts,
    labelled_task,
)


def check(settings: Settings) -> None:
    """Read the labelled texts, if they are in a file.

    Raises:
        EvaluationError: the file cannot be read, or has too few classes or texts.
    """
    _check_classes(settings.source, file_texts(settings, OWN_SIZES))


def run(context: EvalContext, settings: Settings) -> Outcome:
    """Losses of probe accuracy when ``n`` latents of a class are ablated, for several ``n``.

    - ``threshold_{n}_intended``: the loss of the class's own probe;
    - ``threshold_{n}_unintended``: the loss of the other classes' probes;
    - ``threshold_{n}``: the difference, which is the score.

    Each value is a mean over classes and then over data sets.

    Raises:
        EvaluationError: there are no labelled texts, too few texts or classes, or too few latents.
    """
    from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig
    from sae_bench.evals.scr_and_tpp.eval_output import TppEvalOutput

    sae = prepared_sae(context)
    values = n_values(sae)
    task = labelled_task(context, settings, ScrAndTppEvalConfig().dataset_names, OWN_SIZES)
    _check_classes(task.source, task.texts and task.texts[0])
    config = ScrAndTppEvalConfig(
        random_seed=settings.seed,
        dataset_names=task.datasets,
        perform_scr=False,
        train_set_size=2 * task.train_size,
        test_set_size=2 * task.test_size,
        context_length=context_length(context, settings.context_length, task.texts),
        sae_batch_size=settings.sae_batch_size,
        llm_batch_size=settings.llm_batch_size,
        llm_dtype=context.bench.dtype,
        model_name=context.bench.model_label,
    )
    with session(context) as folder, task.served():
        result, accuracies, kept = run_eval(context, config, sae, folder, TppEvalOutput, task.texts)
    scores = read_metrics(result["eval_result_metrics"])
    return Outcome(
        {
            name: scores[name]
            for n in values
            for name in (f"threshold_{n}{part}" for part in ("", "_intended", "_unintended"))
        },
        {
            "source": task.source,
            "classes": result["eval_result_unstructured"],
            "probe_accuracy": accuracies,
            "caveat": CAVEAT,
            "sae_bench_file": kept,
        },
    )


def _check_classes(source: str, texts: Texts | None) -> None:
    if texts is not None and len(texts) < 3:
        raise EvaluationError(
            f"{source} has {len(texts)} classes and TPP needs three: the probes of "
            "two classes read the same difference, so that no ablation hurts one and spares the "
            "other. Set source to a file with the fields text and label"
        )
