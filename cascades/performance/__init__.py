"""Costs of compiled programs: FLOPs, memory, collectives, rooflines."""
