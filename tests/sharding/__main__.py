"""Runs one group of cases on four host devices; prints what failed, as JSON.

``python -m tests.sharding GROUP``: one of `GROUPS`, or ``product``, all kinds of
layers, statistics, solvers and layouts with each other, which takes hours, or
``product N``, some of them in which any N that go together occur.
"""

import json
import os
import sys
import traceback

from tests.sharding.host import environment


def cases(group, *strength):
    if group != "product":
        from tests.sharding.groups import GROUPS

        return GROUPS[group]
    from tests.sharding import product

    chosen = product.covering(*map(int, strength)) if strength else product.every()
    return {str(each): each for each in chosen}


def main(group, *strength):
    os.environ.update(environment(4, 32 if group == "float32" else 64))
    # Nearly all the time goes into compiling what then runs twenty times.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    import jax

    assert jax.device_count() == 4
    failures = {}
    for number, (name, case) in enumerate(cases(group, *strength).items()):
        try:
            case()
        except Exception:
            failures[name] = traceback.format_exc()
            print(f"failed: {name}", file=sys.stderr)
        if number % 100 == 99:
            jax.clear_caches()  # together they fill a memory
    print(json.dumps(failures))


main(*sys.argv[1:])
