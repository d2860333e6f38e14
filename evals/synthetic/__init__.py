"""What the penalties do where the true features are known."""
