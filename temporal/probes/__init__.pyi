from .estimators import FittedProbe as FittedProbe
from .estimators import fit_attentive as fit_attentive
from .estimators import fit_knn as fit_knn
from .estimators import fit_linear as fit_linear
from .fitters import PROBES as PROBES
from .saved import SavedProbe as SavedProbe
from .saved import load_probe as load_probe
from .scikit import KNNProbe as KNNProbe
from .scikit import LinearProbe as LinearProbe

__all__ = [
    "PROBES",
    "FittedProbe",
    "KNNProbe",
    "LinearProbe",
    "SavedProbe",
    "fit_attentive",
    "fit_knn",
    "fit_linear",
    "load_probe",
]
