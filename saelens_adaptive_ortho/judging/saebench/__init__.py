"""Drivers for SAEBench, one module per evaluation; ``sae_bench`` is imported when one runs."""
