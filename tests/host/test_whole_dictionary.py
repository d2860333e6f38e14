"""The penalty covers the whole dictionary at a memory cost linear in its width."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evals.performance.overhead import peak_memory
from evals.performance.steps import Size
from saelens_adaptive_ortho.maths import device

Build = Callable[..., Any]
N, DECAY, PSEUDO, TOLERANCE = 24, 0.99, 3.0, 0.1


class DenseReference:
    """The whole ``adaptive`` penalty with its defaults, computed on [N, N] matrices."""

    def __init__(self) -> None:
        zero = torch.zeros(N, N, dtype=torch.float64)
        self.samples, self.variance, self.weight = 0.0, 0.0, 0.0
        self.fired, self.total, self.squares = zero[0].clone(), zero[0].clone(), zero[0].clone()
        self.joint, self.own = zero.clone(), zero.clone()

    def see(self, x: Tensor) -> None:
        variance = (x - x.mean(0)).square().sum(-1).mean()
        self.variance = DECAY * self.variance + (1 - DECAY) * float(variance)
        self.weight = DECAY * self.weight + (1 - DECAY)

    def count(self, acts: Tensor) -> None:
        fires = (acts > 0).double()
        for name, new in {
            "samples": len(acts),
            "fired": fires.sum(0),
            "total": acts.sum(0),
            "squares": acts.square().sum(0),
            "joint": fires.T @ fires,
            "own": acts.T @ fires,  # a_i summed over joint firings
        }.items():
            setattr(self, name, DECAY * getattr(self, name) + new)

    def affinity(self) -> Tensor:
        rate = self.fired / max(self.samples, 1.0)
        lift = self.joint / (self.samples * rate.outer(rate) + 1)
        alone = self.fired.unsqueeze(1) - self.joint
        mean = (self.total / self.fired.clamp(min=1e-8)).unsqueeze(1).expand(N, N)
        apart = (self.total.unsqueeze(1) - self.own) / alone.clamp(min=1e-8)
        apart = torch.where(alone > PSEUDO, apart, mean)
        together = (self.own + PSEUDO * apart) / (self.joint + PSEUDO)
        kept = torch.where(apart > 0, together / apart.clamp(min=1e-8), 1.0)
        kept = torch.minimum(kept, kept.T)
        return lift.clamp(max=1) * (1 - (1 - kept) / TOLERANCE).clamp(0, 1)

    def loss(self, W_dec: Tensor, coefficient: float) -> Tensor:
        D = W_dec / W_dec.norm(dim=1, keepdim=True)
        weight = 1 - self.affinity()
        energy = self.squares / max(self.samples, 1.0) / (self.variance / self.weight)
        losses = []
        for i in range(N):
            costs = [
                weight[i, j] * (D[i] @ D[j]).relu() if i != j else torch.tensor(-1.0)
                for j in range(N)
            ]
            j = max(range(N), key=lambda j: float(costs[j].detach()))
            a = D[i].detach() if self.fired[i] > self.fired[j] else D[i]
            b = D[j].detach() if self.fired[j] > self.fired[i] else D[j]
            cost = weight[i, j] * (a @ b).relu()
            losses.append(torch.minimum(energy[i], energy[j]) * cost.square())
        return coefficient * self.variance / self.weight * torch.stack(losses).sum()


@pytest.mark.parametrize("name", ["standard", "batchtopk"])
def test_all_candidates_equal_dense_matrices(build_sae: Build, name: str) -> None:
    sae = build_sae(
        f"adaptive_ortho_{name}",
        d_in=6,
        d_sae=N,
        ortho_neighbours=N - 1,
        ortho_refresh_every=1,
        ortho_statistics_every=1,
    ).double()
    reference = DenseReference()
    generator = torch.Generator().manual_seed(0)
    coefficients = {"l1": 0.0, "ortho": 0.3}
    seen = []
    for step in range(12):
        with torch.no_grad():  # the decoder changes
            noise = torch.randn(N, 6, generator=generator, dtype=torch.float64)
            sae.W_dec += 0.1 * sae.W_dec.norm(dim=1, keepdim=True) * noise
        x = torch.randn(32, 6, generator=generator, dtype=torch.float64)
        reference.see(x)
        expected = reference.loss(sae.W_dec, 0.3)
        (gradient,) = torch.autograd.grad(expected, sae.W_dec)
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients=coefficients,
                dead_neuron_mask=None,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
        (found,) = torch.autograd.grad(output.losses["ortho_loss"], sae.W_dec)
        # Statistics are kept in float32.
        torch.testing.assert_close(output.losses["ortho_loss"], expected, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-7)
        acts = output.feature_acts.detach()
        reference.count(acts if name == "batchtopk" else acts * sae.W_dec.detach().norm(dim=1))
        seen.append(float(expected.detach()))
    assert seen[0] == 0  # nothing has fired yet
    assert min(seen[1:]) > 0
    sharing = reference.affinity().fill_diagonal_(0)
    assert 0.1 < float((sharing > 0.5).double().mean()) < 0.9, "some pairs are to share, some not"


@pytest.mark.parametrize("variant", ["fixed", "adaptive"])
def test_no_all_pairs_matrix_is_stored(variant: str) -> None:
    """Run a few steps of every kind, including a refresh, in a separate process."""
    d_sae = 16_384
    assert peak_memory("standard", Size(8, d_sae, 64), variant, "cpu", False) < 0.4 * 4 * d_sae**2


class Reads(TorchDispatchMode):
    """Counts operations that wait for a GPU: reading a number, or a data-dependent shape."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += any(name in str(func) for name in self.WAITING)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["standard", "batchtopk", "jumprelu"])
def test_step_reads_nothing_from_the_device(
    build_sae: Build, make_batches: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Use the code paths of a GPU.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(
        "saelens_adaptive_ortho.host.batchtopk.SMALLEST", 10**9
    )  # the stock selection, as on a GPU
    counts = {}
    for mode in ("off", "adaptive", "fixed", "gram"):
        sae = build_sae(f"adaptive_ortho_{name}", ortho_mode=mode, ortho_refresh_every=100)
        for step in (0, 1):  # step 1 has no count, no check, no refresh
            with Reads() as reads:
                output = sae.training_forward_pass(
                    TrainStepInput(
                        sae_in=make_batches(1)[0],
                        coefficients={"l1": 1.0, "l0": 1.0, "ortho": 0.3},
                        dead_neuron_mask=None,
                        n_training_steps=step,
                        is_logging_step=False,
                    )
                )
                output.loss.backward()
            counts[mode, step] = reads.count
    assert counts["adaptive", 0] > counts["off", 0], "the test is to see a read"
    assert {counts[mode, 1] for mode in ("adaptive", "fixed", "gram")} == {counts["off", 1]}


@pytest.mark.parametrize("name", ["standard", "batchtopk"])
def test_gpu_path_waits_only_for_the_number_of_firings(
    build_sae: Build, make_batches: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(device, "on_gpu", lambda _: True)
    monkeypatch.setattr("saelens_adaptive_ortho.host.batchtopk.SMALLEST", 10**9)
    counts = {}
    for mode in ("off", "adaptive", "fixed"):
        sae = build_sae(f"adaptive_ortho_{name}", ortho_mode=mode, ortho_refresh_every=100)
        for step in range(12):
            with Reads() as reads:
                output = sae.training_forward_pass(
                    TrainStepInput(
                        sae_in=make_batches(1)[0],
                        coefficients={"l1": 1.0, "ortho": 0.3},
                        dead_neuron_mask=None,
                        n_training_steps=step,
                        is_logging_step=False,
                    )
                )
                output.loss.backward()
            counts[mode, step] = reads.count
    extra = [counts["adaptive", step] - counts["off", step] for step in range(12)]
    # Steps 4 and 8 count firings: count_nonzero (which does not wait) of a sample and its number,
    # and nonzero. Steps 5 and 10 check the lists. Steps 1, 5 and 9 choose pairs.
    assert extra[1:] == [0, 0, 0, 3, 1, 0, 0, 3, 0, 1, 0]
    assert all(counts["fixed", step] == counts["off", step] for step in range(12))


@pytest.mark.parametrize("name", ["standard", "batchtopk"])
def test_training_on_the_gpu_path_equals_the_cpu_path(
    build_sae: Build, make_batches: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trained = []
    for gpu in (False, True):
        monkeypatch.setattr(device, "on_gpu", lambda _, gpu=gpu: gpu)
        # With all other latents as candidates, rounding changes no list.
        fields = {"d_sae": 24, "ortho_neighbours": 23, "ortho_coefficient": 3.0}
        sae = build_sae(f"adaptive_ortho_{name}", ortho_forget_rows=8, **fields)
        optimiser = torch.optim.SGD(sae.parameters(), lr=1e-3)
        for step, x in enumerate(make_batches(12)):
            output = sae.training_forward_pass(
                TrainStepInput(
                    sae_in=x,
                    coefficients={"l1": 0.1, "ortho": 3.0, "separation": 1.0},
                    dead_neuron_mask=None,
                    n_training_steps=step,
                    is_logging_step=False,
                )
            )
            optimiser.zero_grad()
            output.loss.backward()
            optimiser.step()
        trained.append(sae)
    cpu, gpu_path = trained
    assert torch.equal(cpu.ortho_partner, gpu_path.ortho_partner)
    torch.testing.assert_close(gpu_path.W_dec, cpu.W_dec, rtol=1e-4, atol=1e-6)
    joint = [
        torch.zeros(24, 24).scatter(1, s.ortho_neighbours, s.ortho_joint_other) for s in trained
    ]
    torch.testing.assert_close(*joint, rtol=1e-4, atol=1e-4)
    assert cpu.ortho_push.max() > 0
