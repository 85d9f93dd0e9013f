"""`python -m scnet_command`: the command `scnet`."""

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
