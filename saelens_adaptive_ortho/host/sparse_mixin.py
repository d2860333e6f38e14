"""Training steps of stock architectures with products over the firing latents only."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint  # no top-level name; SAELens uses this path too

from saelens_adaptive_ortho.maths import sparse
from saelens_adaptive_ortho.maths.sparse import Nonzeros

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput

    _Base = TrainingSAE[Any]
else:
    _Base = object


class SparseStepMixin(_Base):
    """Encoder and decoder with the products of :mod:`~saelens_adaptive_ortho.maths.sparse`.

    If ``ortho_sparse_products`` is set, this class replaces the stock computation in training steps
    on a CPU in float32. In all other cases, and if a hook reads or changes an intermediate tensor,
    the stock class computes. Top-k architectures scale latents by decoder norms. Here the norms are
    computed once and go into the products, so that neither a [batch, d_sae] tensor nor the decoder
    is scaled.
    """

    cfg: Any
    b_enc: nn.Parameter
    ortho_sparse_products = False  # the project's trainer sets it
    _ortho_norms: Tensor | None = None  # of the current training forward pass
    _ortho_shares_norms = False  # whether there is one

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

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        self._ortho_shares_norms = True
        try:
            return super().training_forward_pass(step_input)
        finally:
            self._ortho_shares_norms, self._ortho_norms = False, None

    def _norms(self) -> Tensor | None:
        """Decoder row norms [d_sae] that scale the latents; None without such scaling."""
        if not getattr(self.cfg, "rescale_acts_by_decoder_norm", False):
            return None
        if self._ortho_norms is not None:
            return self._ortho_norms
        norms = self.W_dec.norm(dim=-1)
        if self._ortho_shares_norms:
            self._ortho_norms = norms
        return norms

    def encode_with_hidden_pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not _unhooked(self.hook_sae_acts_pre) or not self._multiplies_sparsely(x):
            return super().encode_with_hidden_pre(x)  # pyright: ignore[reportAbstractUsage]
        sae_in = self.process_sae_in(x)
        data = not x.requires_grad and _unhooked(self.hook_sae_input)
        centre = self.b_dec if data and self.cfg.apply_b_dec_to_input else None
        hidden_pre = sparse.linear(sae_in, self.W_enc, self.b_enc, self._norms(), centre)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    def decode(self, feature_acts: Tensor) -> Tensor:
        if feature_acts.is_sparse or not self._multiplies_sparsely(feature_acts):
            return super().decode(feature_acts)
        product = sparse.matmul(feature_acts, self.W_dec, self._norms())
        out = self.hook_sae_recons(product + self.b_dec)
        return self.reshape_fn_out(self.run_time_activation_norm_fn_out(out), self.d_head)

    def _iterable_decode(
        self, feature_acts: Tensor, include_outer_loss: bool = False
    ) -> Generator[tuple[int, Tensor], None, None]:
        if feature_acts.is_sparse or not self._multiplies_sparsely(feature_acts):
            yield from super()._iterable_decode(feature_acts, include_outer_loss)  # type: ignore[misc]
            return
        widths, norms, known = (
            self.cfg.matryoshka_widths,
            self._norms(),
            Nonzeros.known(feature_acts),
        )
        decoded = self.b_dec
        ends = widths if include_outer_loss else widths[:-1]
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            acts = feature_acts[:, start:end]
            if known is not None:
                known.of_columns(start, end).kept_by(acts)
            of_level = None if norms is None else norms[start:end]
            decoded = sparse.matmul(acts, self.W_dec[start:end], of_level) + decoded
            yield end, self.run_time_activation_norm_fn_out(decoded)

    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: Tensor) -> None:
        """SAELens's update of BatchTopK's threshold, which the least positive activation sets."""
        known = Nonzeros.known(acts_topk)
        if known is not None and len(known.values):
            acts_topk = known.values
        super().update_topk_threshold(acts_topk)  # type: ignore[misc]


def _unhooked(point: nn.Module) -> bool:
    """Whether this is a plain hook point that nobody listens to."""
    return type(point) is HookPoint and not point.fwd_hooks and not point.bwd_hooks
