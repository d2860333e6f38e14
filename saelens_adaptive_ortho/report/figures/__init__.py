"""Figures of a run, drawn with matplotlib.

Every ``*_figure`` returns a :class:`matplotlib.figure.Figure`, or None where the results hold
nothing to draw. A figure of an evaluation's section is called with a :class:`.section.Section`, and
its evaluation names it (``draw="module:function"``).

* :mod:`.files`: all figures of a run, as files or as text inside a page
* :mod:`.dots`: metrics as a dot per seed
* :mod:`.curves`: training
* :mod:`.geometry`: angles, cosines and firing rates
* :mod:`.frontier`: unlearning
* :mod:`.counts`: a metric against the number of latents it uses
* :mod:`.analysis`: the figures of ``adaptive-ortho analyse``
* :mod:`.section`, :mod:`.style`: what they are drawn from, and what they share
"""
