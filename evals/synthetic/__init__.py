"""Study: the effect of the penalties in synthetic worlds, where the true features are known."""
