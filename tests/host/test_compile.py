"""SAELens's ``compile_sae``: our part of a step is one graph and gives the same numbers."""

from __future__ import annotations

import subprocess
import sys

# A separate process, because the shape checks of the test run cannot be compiled.
CODE = """
import copy, torch, torch._dynamo
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput
import saelens_adaptive_ortho

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)

def batch(step):
    x = torch.randn(32, 8, generator=generator)
    weights = {"l1": 1.0, "l0": 1.0, "ortho": 0.3}
    return TrainStepInput(sae_in=x, coefficients=weights, dead_neuron_mask=None,
                          n_training_steps=step, is_logging_step=False)

for name, sparsity in [("standard", {"l1_coefficient": 1.0}), ("jumprelu", {}),
                       ("topk", {"k": 4}), ("batchtopk", {"k": 4})]:
    sae_class, cfg_class = get_sae_training_class("adaptive_ortho_" + name)
    torch.manual_seed(0)
    sae = sae_class(cfg_class(d_in=8, d_sae=32, **sparsity))
    for step in range(5):  # step 0 searches neighbours; steps 0 and 4 count co-activation
        sae.training_forward_pass(batch(step)).loss.backward()
    plain, step_input = copy.deepcopy(sae), batch(6)
    for one in (sae, plain):
        one.zero_grad()
    found = torch._dynamo.explain(sae.training_forward_pass)(step_input)
    for reason in found.break_reasons:
        assert "sae_lens" in reason.user_stack[-1].filename, reason
    assert name == "batchtopk" or found.graph_break_count == 0, name
    torch._dynamo.reset()
    sae = copy.deepcopy(plain)
    compiled = torch.compile(sae.training_forward_pass, backend="aot_eager")
    outputs = [step(step_input) for step in (compiled, plain.training_forward_pass)]
    for output in outputs:
        assert output.losses["ortho_loss"] > 0
        output.loss.backward()
    torch.testing.assert_close(*(output.loss for output in outputs))
    torch.testing.assert_close(sae.W_dec.grad, plain.W_dec.grad)
    torch.testing.assert_close(sae.W_enc.grad, plain.W_enc.grad)
"""


def test_compiled_step_has_no_graph_break_of_ours() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
