"""Runs one group of cases on four host devices; prints what failed, as JSON."""

import json
import sys
import traceback

import jax

from tests.sharding.groups import GROUPS


def main():
    assert jax.device_count() == 4
    failures = {}
    for name, case in GROUPS[sys.argv[1]].items():
        try:
            case()
        except Exception:
            failures[name] = traceback.format_exc()
    print(json.dumps(failures))


main()
