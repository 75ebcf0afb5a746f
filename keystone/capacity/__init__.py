"""How much of everything a load takes: pure arithmetic over a measured model. The command is ``keystone plan`` (docs/capacity.md)."""
