"""Self-contained pages: figures and styles are inline, and a page makes no request to a server.

* :mod:`.run`: ``report.html`` of a run
* :mod:`.analysis`: ``analysis.html`` of ``adaptive-ortho analyse``
* :mod:`.browse`: ``index.html`` of ``adaptive-ortho browse``; its script loads the files beside it
* :mod:`.text`: what was compared, and text before and after unlearning
* :mod:`.parts`: figures and tables of the pages
* ``templates/``: the HTML; it escapes every text, only figures enter as markup
"""
