"""Drivers for SAEBench, one module per evaluation. A driver imports ``sae_bench`` when it runs."""
