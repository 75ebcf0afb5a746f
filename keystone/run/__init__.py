"""``keystone run``, ``simulate``, ``topics``, ``doctor`` and ``demo``: the commands for a stream that goes on."""
