"""Study: the effect of ``ortho_alpha``, the sharing allowed, on a language model."""
