"""Figures of a run, drawn with matplotlib.

Every ``*_figure`` returns a :class:`matplotlib.figure.Figure`, or None if the results contain
nothing to draw. An evaluation names the functions that draw its figures
(``draw="module:function"``). Each of them is called with a :class:`.section.Section`.

* :mod:`.files`: all figures of a run, as files or as text inside a page
* :mod:`.tradeoff`: one metric against another, a point per SAE
* :mod:`.sparsity`: metrics over L0, a line per method, and published results
* :mod:`.dots`: metrics as a dot per seed
* :mod:`.curves`: training
* :mod:`.geometry`: angles, cosines and firing rates
* :mod:`.frontier`: unlearning
* :mod:`.counts`: a metric against the number of latents it uses
* :mod:`.analysis`: the figures of ``adaptive-ortho analyse``
* :mod:`.section`: the input of a figure
* :mod:`.labels`: labels beside points and lines
* :mod:`.style`: colours, markers, panels and legend of all figures
"""
