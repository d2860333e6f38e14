"""Studies: code, configs and results behind the claims of the documentation."""
