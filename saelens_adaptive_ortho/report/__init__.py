"""From result files to statistics, tables, figures and one self-contained page.

Nothing here imports torch or SAELens, so a finished run can be read anywhere.

* :mod:`.statistics`: spreads over seeds and paired differences (:func:`.statistics.summarise`)
* :mod:`.notes`: what a run lacks, and what its results say in words
* :mod:`.verdicts`: what the statistics say in sentences (:func:`.verdicts.judge`)
* :mod:`.summary`: both as ``summary.json``
* :mod:`.tables`: for the terminal and for markdown; :mod:`.markdown` keeps those inside a file
* :mod:`.figures`: drawn with matplotlib
* :mod:`.page`: ``report.html`` of a run, ``analysis.html`` of an analysis
* :mod:`.metrics`, :mod:`.formatting`, :mod:`.bootstrap`: labels, numbers as text, intervals over
  seeds and units
"""
