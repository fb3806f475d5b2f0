"""Trains in several processes, one of which this is, as one device does alone.

``python -m tests.sharding.processes ADDRESS COUNT ID``; prints what failed, as JSON.
"""

import json
import sys
import traceback

import jax
from jax.experimental import multihost_utils

from tests.sharding.groups import PROCESSES


def main(address, count, number):
    jax.distributed.initialize(address, int(count), int(number))
    assert jax.process_count() == int(count)
    failures = {}
    for name, case in PROCESSES.items():
        try:
            case()
        except Exception:
            failures[name] = traceback.format_exc()
        multihost_utils.sync_global_devices(name)
    print(json.dumps(failures))


if __name__ == "__main__":
    main(*sys.argv[1:])
