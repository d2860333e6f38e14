"""Studies of separation: which half of the penalty separates a forget corpus from the rest."""
