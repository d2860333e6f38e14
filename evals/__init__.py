"""Studies: the code, configs and results behind what the documentation claims."""
