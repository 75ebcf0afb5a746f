"""Notebooks of a run, and what they are made of: figures (tables), charts, and the page that opens offline.

``runs`` reads, ``figures`` counts, ``charts`` and ``words`` show; ``quality`` and ``quality_charts`` do the same for a lake. ``notebook``
executes, ``page`` makes one HTML file of what was executed. The notebooks themselves only say what to show and why.
"""
