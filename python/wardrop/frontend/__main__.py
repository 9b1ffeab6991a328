"""`python -m wardrop.frontend`: a drop-in for `python -m dynamo.frontend`."""

import sys

from wardrop.frontend.launch import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
