"""How a temporal module is trained: what a run is made of, the loop, its state, its log, several processes, evaluation.

`vfz.temporal.train` and `vfz.temporal.evaluate` are the public calls.
"""
