"""How a temporal module is trained: what a run is made of, the loop, its state, its log, several processes, evaluation.

`vfz.temporal.training.train` and `vfz.temporal.training.evaluate` are the public calls.
"""
