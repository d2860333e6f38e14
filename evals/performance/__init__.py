"""Study: the cost of the penalty, in benchmarks against the stock architecture."""
