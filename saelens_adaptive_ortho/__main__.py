"""``python -m saelens_adaptive_ortho`` is the command line ``adaptive-ortho``."""

import sys

from saelens_adaptive_ortho.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
