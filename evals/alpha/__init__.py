"""What ``ortho_alpha``, the sharing allowed, does on a language model."""
