"""What a run makes of the devices' events, for people: ``python consumer.py``, and ``python producer.py`` in another terminal.

It is ``keystone run --story --from latest``; more options follow, such as ``--log kafka://127.0.0.1:9092``.
"""

import sys

from keystone.cli import main

if __name__ == "__main__":
    main(["run", "--story", "--from", "latest", *sys.argv[1:]])
