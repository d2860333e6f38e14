"""Training steps of stock architectures with products over the firing latents only."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint  # no top-level name; SAELens uses this path too

from saelens_adaptive_ortho.maths import sparse

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE

    _Base = TrainingSAE[Any]
else:
    _Base = object


class SparseStepMixin(_Base):
    """Encoder and decoder with the products of :mod:`~saelens_adaptive_ortho.maths.sparse`.

    If ``ortho_sparse_products`` is set, this class replaces the stock computation in training steps
    on a CPU in float32. In all other cases, and if a hook reads or changes an intermediate tensor,
    the stock class computes. Top-k architectures scale latents by decoder norms. Here the norms are
    multiplied into the weights, so that no [batch, d_sae] tensor is scaled.
    """

    cfg: Any
    b_enc: nn.Parameter
    ortho_sparse_products = False  # the project's trainer sets it

    def _multiplies_sparsely(self, x: Tensor) -> bool:
        return (
            self.ortho_sparse_products
            and self.training
            and torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.ndim == 2
            and x.dtype == self.W_dec.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
        )

    def _norms(self) -> Tensor | None:
        """Decoder row norms [d_sae] that scale the latents; None without such scaling."""
        if not getattr(self.cfg, "rescale_acts_by_decoder_norm", False):
            return None
        return self.W_dec.norm(dim=-1)

    def _decoder(self) -> Tensor:
        norms = self._norms()
        return self.W_dec if norms is None else self.W_dec / norms.unsqueeze(1)

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        point = self.hook_sae_acts_pre
        unhooked = type(point) is HookPoint and not point.fwd_hooks and not point.bwd_hooks
        if not unhooked or not self._multiplies_sparsely(x):
            return super().encode_with_hidden_pre(x)  # pyright: ignore[reportAbstractUsage]
        W, b, norms = self.W_enc, self.b_enc, self._norms()
        if norms is not None:
            W, b = W * norms, b * norms
        hidden_pre = sparse.linear(self.process_sae_in(x), W, b)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    def decode(self, feature_acts: Tensor) -> Tensor:
        if feature_acts.is_sparse or not self._multiplies_sparsely(feature_acts):
            return super().decode(feature_acts)
        out = self.hook_sae_recons(sparse.matmul(feature_acts, self._decoder()) + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)

    def _iterable_decode(
        self, feature_acts: Tensor, include_outer_loss: bool = False
    ) -> Generator[tuple[int, Tensor], None, None]:
        if feature_acts.is_sparse or not self._multiplies_sparsely(feature_acts):
            yield from super()._iterable_decode(feature_acts, include_outer_loss)  # type: ignore[misc]
            return
        widths = self.cfg.matryoshka_widths
        W, decoded = self._decoder(), self.b_dec
        ends = widths if include_outer_loss else widths[:-1]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            decoded = sparse.matmul(feature_acts[:, start:end], W[start:end]) + decoded
            yield end, self.run_time_activation_norm_fn_out(decoded)
