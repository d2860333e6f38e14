"""Ground truth: synthetic worlds whose true features are known, and what an SAE makes of them."""
