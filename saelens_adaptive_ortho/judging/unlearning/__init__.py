"""Unlearning by clamping latents: which ones, how, and what it costs."""
