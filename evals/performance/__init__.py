"""What the penalty costs: benchmarks against the stock architecture, in one process."""
