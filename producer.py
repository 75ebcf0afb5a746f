"""A few dozen simulated devices, many of them on a bad path, so that something happens: ``python producer.py``.

It is ``keystone simulate`` at a rate that people can read; more options follow, such as ``--log kafka://127.0.0.1:9092``.
"""

import sys

from keystone.cli import main

if __name__ == "__main__":
    main(["simulate", "--eps", "30", "--bad-paths", "0.03", "--weak-paths", "0.5", *sys.argv[1:]])
