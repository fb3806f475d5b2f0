"""``python -m linboost_optax trial my_task.py``."""

import sys

from linboost_optax._trial.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
