"""Fuzz and fault campaigns: what the package does with inputs and accidents nobody wrote for it.

A campaign is a module with `DEFAULT_CASES`, `LIMIT` (seconds after which a case counts as hung) and
`case(number, dice, home)`, which carries out one case and returns what came of it. The dice decide
everything, and derive from campaign, seed and number: a case can be repeated alone. `tests/faults`
runs a few cases of each.
"""
