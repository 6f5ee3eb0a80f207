from .estimators import FittedProbe as FittedProbe
from .estimators import fit_attentive as fit_attentive
from .estimators import fit_knn as fit_knn
from .estimators import fit_linear as fit_linear
from .fitters import PROBES as PROBES

__all__ = ["PROBES", "FittedProbe", "fit_attentive", "fit_knn", "fit_linear"]
