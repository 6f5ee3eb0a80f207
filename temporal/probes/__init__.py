"""Probes: how much can be read off frozen tokens, or off what a temporal module makes of them.

    estimators                `fit_linear`, `fit_attentive`, `fit_knn`, each a `FittedProbe`: for notebooks
    scikit                    `LinearProbe`, `KNNProbe`: scikit-learn's kind of estimator, where that is installed
    saved                     `load_probe`: the head that `vfz probe` keeps, a `SavedProbe`
    run, jobs                 `vfz probe`: probes of classes; of labels and numbers, and readouts of boxes and the like
    linear, attentive, knn    the three kinds of probe, by name in `PROBES` (fitters)
    heads, selection          a grid of settings as heads of one pass; the choice among them on held-out videos
    sources, record           features as the options say; probe.json, and a result that is found again

Names are imported when they are first used, so that this package does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
