"""A sweep's config: what its axes mean, what is refused, and how SAEs become units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from saelens_adaptive_ortho.errors import ConfigError
from saelens_adaptive_ortho.experiments.experiment import build_experiment
from saelens_adaptive_ortho.manifests import Manifest, read_manifest, write_manifest
from saelens_adaptive_ortho.settings import apply_override
from saelens_adaptive_ortho.sweeps import packing
from saelens_adaptive_ortho.sweeps.axes import build_sweep
from saelens_adaptive_ortho.training.runner_config import with_sae
from tests.sweeps.helpers import LAYERS

Tree = Callable[..., dict[str, Any]]


@pytest.fixture
def tree(settings: Tree) -> Tree:
    """Return a function that makes the settings of a sweep over some axes."""

    def make(axes: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return settings(**{"output_path": "runs/sweep", "sweep": axes, **changes})

    return make


def test_points_are_the_product_of_all_axes(tree: Tree) -> None:
    axes = {"hook_name": LAYERS, "sae.k": [4, 8], "sae.ortho_alpha": [0, 0.5], "seed": [0, 1, 2]}
    sweep = build_sweep(tree(axes))
    assert list(sweep.axes) == [*list(axes)[:-1], "seed"]
    points = [point for setting in sweep.settings for point in setting.points]
    assert len(points) == 2 * 2 * 2 * 3
    assert len({point.id for point in points}) == 24
    assert all(set(point.values) == set(axes) for point in points)
    # What can be trained together differs in neither hook nor seed.
    assert len(sweep.settings) == 2 * 3
    first = sweep.settings[0]
    assert [p.variant for p in first.points] == [
        f"k={k}-alpha={alpha}" for k in (4, 8) for alpha in (0, 0.5)
    ]
    for point in first.points:
        cfg = with_sae(first.experiment.runner, first.experiment.variants[point.variant])
        assert cfg.sae.k == point.values["sae.k"]
        assert cfg.sae.ortho_alpha == point.values["sae.ortho_alpha"]
        assert cfg.hook_name == point.values["hook_name"] == LAYERS[0]


def test_variant_is_not_multiplied_by_an_axis_that_it_sets(tree: Tree) -> None:
    variants = {"baseline": {"ortho_mode": "off", "ortho_alpha": 1.0}, "adaptive": {}}
    sweep = build_sweep(tree({"sae.ortho_alpha": [0, 0.5, 1]}, variants=variants))
    (setting,) = sweep.settings
    assert [p.variant for p in setting.points] == [
        "baseline",
        "adaptive-alpha=0",
        "adaptive-alpha=0.5",
        "adaptive-alpha=1",
    ]
    assert [p.base for p in setting.points] == ["baseline", *["adaptive"] * 3]
    assert "sae.ortho_alpha" not in setting.points[0].values


def test_architecture_and_nested_fields_are_axes(tree: Tree) -> None:
    architectures = ["adaptive_ortho_topk", "adaptive_ortho_batchtopk"]
    axes = {"sae.architecture": architectures, "ortho_forget_fraction": [0.25, 0.5]}
    sweep = build_sweep(tree(axes))
    assert len(sweep.settings) == 2
    assert [p.variant for p in sweep.settings[0].points] == [
        "architecture=topk",
        "architecture=batchtopk",
    ]
    for setting, share in zip(sweep.settings, (0.25, 0.5), strict=True):
        assert setting.experiment.runner.ortho_forget_fraction == share


def test_another_corpus_is_another_setting(tree: Tree, settings: Tree) -> None:
    forget, retain = settings()["ortho_corpora"].values()
    axes = {"ortho_corpora.retain.path": [retain, "elsewhere.jsonl"]}
    full = tree(axes, ortho_corpora={"forget": {"path": forget}, "retain": {"path": retain}})
    found = [s.experiment.runner.corpora()["retain"].path for s in build_sweep(full).settings]
    assert found == [retain, "elsewhere.jsonl"]


def test_seeds_and_hooks_of_the_config_are_axes(tree: Tree) -> None:
    sweep = build_sweep(tree({"sae.k": [4]}, seeds=[3, 5], hook_names=LAYERS))
    assert sweep.axes == {"hook_name": LAYERS, "sae.k": [4], "seed": [3, 5]}
    assert build_sweep(tree({"sae.k": [4]})).axes["seed"] == [0]


def test_axes_may_be_nested_as_overrides_are(tree: Tree) -> None:
    full = tree({"sae.k": [4], "seed": [1]})
    apply_override(full, "sweep.sae.k=[8, 16]")
    apply_override(full, "sweep.sae.ortho_alpha=[0]")
    assert build_sweep(full).axes == {"sae.k": [8, 16], "sae.ortho_alpha": [0], "seed": [1]}


@pytest.mark.parametrize(
    ("axes", "changes", "words"),
    [
        ({"sae.kk": [1]}, {}, "sweep.sae.kk"),
        ({"hook_nam": ["a"]}, {}, "Did you mean sweep.hook_name?"),
        ({"ortho_alpha": [0, 1]}, {}, "Did you mean sweep.sae.ortho_alpha?"),
        ({"sae.k": []}, {}, "sweep.sae.k=[]: has no values"),
        ({"sae.k": 16}, {}, "sweep.sae.k=16: must be a list"),
        ({"sae.k": [16, 16.0]}, {}, "has the value 16.0 twice"),
        ({"evals": [["core"]]}, {}, "sweep.evals"),
        ({"variants": [1]}, {}, "sweep.variants"),
        ({"seeds": [0, 1]}, {}, "sweep.seeds"),
        ({"device": ["cpu"]}, {}, "does not change what is learned"),
        ({"hook_names": [LAYERS]}, {}, "Name the axis hook_name"),
        ({"sae.device": ["cpu"]}, {}, "sweep.sae.device"),
        ({"seed": [0]}, {"seeds": [0]}, "the sweep has the axis seed"),
        ({"hook_name": LAYERS}, {"hook_names": LAYERS}, "the sweep has the axis hook_name"),
        ({"lr": [0.1, -1.0]}, {}, "sweep.lr=-1.0: "),
        ({"sae.k": [4]}, {"output_path": None}, "output_path"),
        ({"sae.k": [4]}, {"output_path": "s3://b/x"}, "output_path='s3://b/x': is a URL"),
        ({"sae.k": [4]}, {"saes_per_unit": 0}, "saes_per_unit=0"),
        ({"sae.k": [4]}, {"copy_to": "runs/copy"}, "copy_to='runs/copy': must be a URL"),
        ({"sae.k": [4]}, {"variants": {"a": {}, "b": {}}}, "are the same SAE"),
        ({"sae.k": [4]}, {"variants": {"a": 3}}, "variants.a=3"),
        (None, {}, "sweep=None"),
        ({"seed": list(range(1000)), "sae.k": list(range(1000))}, {}, "1,000,000 SAEs"),
        ({"sae.dtype": ["float32"]}, {"variants": {"a": {"dtype": "float32"}}}, "conflicts"),
    ],
)
def test_bad_axis_is_refused_by_name(
    tree: Tree, axes: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_sweep(tree(axes, **changes))
    assert words in str(error.value)


AXIS_ERRORS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"sae.k": [4, -1]}, {}, "sweep.sae.k=-1: ", ""),
    (
        {"sae.k": [4, 128], "sae.ortho_alpha": [0.5]},
        {},
        "sweep.sae.k=128: ",
        " This is at sae.ortho_alpha=0.5.",
    ),
    (
        {"sae.d_sae": [8, 64]},
        {},
        "sweep (sae.d_sae=8, seed=0): sae.ortho_neighbours=8: ",
        "",
    ),
    (
        {"sae.k": [4, 4.5]},
        {"variants": {"a": {"ortho_mode": "of"}}},
        "variants.a.ortho_mode='of'",
        "",
    ),
    (
        {"sae.ortho_alpha": [2]},
        {"variants": {"a": {}}},
        "sweep.sae.ortho_alpha=2: ",
        "",
    ),
    ({"sae.k": [4]}, {"variants": {"a b": {}}}, "sweep (variant a b, sae.k=4", ""),
    (
        {"hook_name": ["nonsense"]},
        {"sae": {"d_in": None}},
        "sweep (hook_name=nonsense, seed=0): hook_name='nonsense'",
        "",
    ),
]


@pytest.mark.parametrize(("axes", "changes", "start", "end"), AXIS_ERRORS)
def test_errors_name_the_axis_and_not_the_variant_that_is_made_of_it(
    tree: Tree, axes: Any, changes: dict[str, Any], start: str, end: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build_sweep(tree(axes, **changes))
    message = str(error.value)
    assert message.startswith(start)
    assert message.endswith(end)
    assert not any(made in message for made in ("variants.k=", "variants.a-", "variants.alpha"))


def test_equal_saes_are_named_by_variant_and_axes(tree: Tree) -> None:
    with pytest.raises(ConfigError) as error:
        build_sweep(tree({"sae.k": [4]}, variants={"a": {}, "b": {}}))
    assert "(variant a, sae.k=4, seed=0) and (variant b, sae.k=4, seed=0) are the same" in str(
        error.value
    )
    twice = {"a": {}, "a-k=4": {"k": 8}}
    with pytest.raises(ConfigError, match="would have one name, a-k=4. Rename one variant"):
        build_sweep(tree({"sae.k": [4]}, variants=twice))


def test_other_commands_refuse_a_sweep(tree: Tree) -> None:
    with pytest.raises(ConfigError, match="adaptive-ortho sweep"):
        build_experiment(tree({"sae.k": [4]}))


# ------------------------------------------------------------------- packing


def names(manifest: Manifest) -> list[list[str]]:
    return [[point.variant for point in unit.points] for unit in manifest.units]


def test_unit_is_a_comparison_of_one_seed(tree: Tree, tmp_path: Any) -> None:
    sweep = build_sweep(tree({"sae.ortho_alpha": [0, 1], "seed": [0, 1]}))
    manifest = packing.pack(sweep)
    assert names(manifest) == [["alpha=0", "alpha=1"]] * 2
    for seed, unit in enumerate(manifest.units):
        experiment = build_experiment({**unit.settings, "output_path": str(tmp_path)})
        assert experiment.seeds == [seed]
        assert list(experiment.variants) == ["alpha=0", "alpha=1"]
        assert unit.memory > 0
        assert unit.size == 2 * 32 * 64 * experiment.runner.training_tokens
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_units_are_bounded_by_number_and_memory(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = {"sae.ortho_alpha": [0, 0.25, 0.5, 0.75, 1]}
    halves = [["alpha=0", "alpha=0.25"], ["alpha=0.5", "alpha=0.75", "alpha=1"]]
    assert names(packing.pack(build_sweep(tree(axes, saes_per_unit=3)))) == halves
    whole = packing.pack(build_sweep(tree(axes)))
    assert len(whole.units) == 1
    three = whole.units[0].memory * 0.8  # of a batch, and of five SAEs
    monkeypatch.setattr(packing, "memory_of", lambda device: int(three / packing.PACKED))
    assert names(packing.pack(build_sweep(tree(axes)))) == halves


def test_sweep_that_grows_keeps_its_units(tree: Tree) -> None:
    small = packing.pack(build_sweep(tree({"sae.ortho_alpha": [0, 1]})))
    # More values on the axis, another seed, and an axis that was a setting before.
    axes = {"sae.k": [4, 8], "sae.ortho_alpha": [0, 0.5, 1], "seed": [0, 1]}
    grown = packing.pack(build_sweep(tree(axes)), small)
    assert grown.units[0].name == small.units[0].name
    assert names(grown)[0] == ["alpha=0", "alpha=1"]
    assert [p.values["sae.k"] for p in grown.units[0].points] == [4, 4]
    ids = [point.id for _, point in grown.points]
    assert len(ids) == len(set(ids)) == 12
    assert len(grown.units) == 3
    # What is not in the sweep any more is not in the manifest.
    again = packing.pack(build_sweep(tree({"sae.ortho_alpha": [1]})), grown)
    assert names(again) == [["alpha=1"]]
    assert again.units[0].name != small.units[0].name


def test_evaluations_do_not_change_the_units(tree: Tree) -> None:
    first = packing.pack(build_sweep(tree({"sae.k": [4]}, evals=["core"])))
    second = packing.pack(build_sweep(tree({"sae.k": [4]}, evals=["core", "subspace"])), first)
    assert [u.name for u in first.units] == [u.name for u in second.units]
    assert first.units[0].settings != second.units[0].settings


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}'])
def test_damaged_manifest_is_named(tree: Tree, tmp_path: Any, text: str) -> None:
    manifest = packing.pack(build_sweep(tree({"sae.k": [4]})))
    write_manifest(tmp_path, manifest)
    path = tmp_path / "sweep.json"
    damaged = path.read_text().replace("sae.k", "sae.j", 1)
    for content in (text, damaged):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"sweep\.json.* writes it again"):
            read_manifest(tmp_path)
    write_manifest(tmp_path, replace(manifest, version=99))
    with pytest.raises(ConfigError, match="version 99"):
        read_manifest(tmp_path)
