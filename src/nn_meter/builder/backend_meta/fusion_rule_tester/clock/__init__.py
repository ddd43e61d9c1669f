"""Verdicts by the clock alone: a controlled experiment for each pair of neighbours.

Read ``docs/method.md`` first: it says why, and what each constant was chosen by. Then, in the order
in which a value passes: ``design`` (which models one question takes), ``plan`` (what to load and
time next), ``statistics`` (times, their errors, intervals), ``decision`` (what follows for a pair),
``cases`` (the same for test cases of cases), ``measure`` (the models made, the plan carried out),
``evidence`` (verdicts from what is stored).
"""
