"""Turn result files into statistics, tables, figures and one self-contained page.

Nothing here imports torch or SAELens, so any machine can read a finished run.

* :mod:`.statistics`: spreads over seeds and paired differences (:func:`.statistics.summarise`)
* :mod:`.notes`: missing values of a run, and the caveats and remarks that its results contain
* :mod:`.verdicts`: the statistics as sentences (:func:`.verdicts.judge`)
* :mod:`.sparsity`: the methods of a run at several sparsities, and at equal L0
* :mod:`.published`: results of others, from files that SAEBench wrote
* :mod:`.summary`: statistics and verdicts as ``summary.json``
* :mod:`.tables`: tables for the terminal and for markdown
* :mod:`.markdown`: updates the tables inside a markdown file
* :mod:`.figures`: figures, drawn with matplotlib
* :mod:`.page`: ``report.html`` of a run, ``analysis.html`` of an analysis
* :mod:`.metrics`: labels of metrics
* :mod:`.formatting`: numbers as text
* :mod:`.bootstrap`: intervals over seeds and units
"""
