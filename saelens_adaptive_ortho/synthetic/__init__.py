"""Synthetic worlds with known true features, and measurements of SAEs trained on them."""
