"""Self-contained pages: figures and styles are inline, and a page makes no request to a server.

* :mod:`.run`: ``report.html`` of a run
* :mod:`.analysis`: ``analysis.html`` of ``adaptive-ortho analyse``
* :mod:`.browse`: ``index.html`` of ``adaptive-ortho browse``; the only page with a script, which
  loads the files beside it
* :mod:`.parts`: figures and tables of the pages
* ``templates/``: the HTML; it escapes every text, only figures enter as markup
"""
