"""How a temporal module is trained and evaluated.

options            of `vfz train-temporal` and `vfz evaluate`
train, evaluate    the two public calls, `train_temporal` and `evaluate`
forecast           what a run takes, measured on some of its steps (`--dry-run`)
sizes              how large a model is where that is not said
experiment         from options to caches, clips, a task and a model that fit each other
loop, step, optim  epochs of steps; one step as a module; optimizer, schedule, moving average
evaluation         a model over a split: clips, metrics, what they are a share of
runs, logs         the run folder: record, weights, checkpoint; metrics and curves
distributed        several processes under torchrun
"""
