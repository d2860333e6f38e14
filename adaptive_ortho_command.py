"""The program ``adaptive-ortho``: it reads its options before PyTorch and SAELens are loaded.

``import saelens_adaptive_ortho`` loads SAELens, to register the architectures there. That takes
seconds, which ``adaptive-ortho --help`` need not wait for. So the package leaves it to the command
line if this module is loaded; it is outside of the package, because a package is imported before
the modules in it. Nothing but the program imports this module.
"""

from saelens_adaptive_ortho.commands.cli import main

__all__ = ["main"]
