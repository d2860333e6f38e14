"""Self-contained pages: figures and styles are inline; a page makes no request and has no script.

* :mod:`.run`: ``report.html`` of a run
* :mod:`.analysis`: ``analysis.html`` of ``adaptive-ortho analyse``
* :mod:`.parts`: figures and tables of both pages
* ``templates/``: the HTML; it escapes every text, only figures enter as markup
"""
