"""Self-contained pages: figures and styles inline, no request, no script.

* :mod:`.run`: ``report.html`` of a run
* :mod:`.analysis`: ``analysis.html`` of ``adaptive-ortho analyse``
* :mod:`.parts`: figures and tables of both
* ``templates/``: the HTML; every text is escaped there, figures alone enter as markup
"""
