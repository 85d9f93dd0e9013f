#!/usr/bin/env python
"""The program scnet-tag from a clone, see docs/tagging.md."""

import sys

from scnet_d2.tagging.program import main

if __name__ == "__main__":
    sys.exit(main())
