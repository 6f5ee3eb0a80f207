# Probes side by side
from .comparison.report import compare_probes as compare_probes
from .comparison.report import compare_runs as compare_runs

# The parts of a model
from .cores import build_core as build_core

# Cached tokens for a model of your own
from .data.dataset import ClipDataset as ClipDataset
from .data.export import ExportReport as ExportReport
from .data.export import export_features as export_features
from .data.options import ExportOptions as ExportOptions
from .data.pooling import to_numpy as to_numpy
from .mixers import build_mixer as build_mixer
from .model import ModelConfig as ModelConfig
from .model import TemporalModel as TemporalModel

# Ask what was trained about videos
from .prediction.options import PredictOptions as PredictOptions
from .prediction.predict import predict as predict

# Probe
from .probes.estimators import fit_attentive as fit_attentive
from .probes.estimators import fit_knn as fit_knn
from .probes.estimators import fit_linear as fit_linear
from .probes.options import CompareOptions as CompareOptions
from .probes.options import CompareRunsOptions as CompareRunsOptions
from .probes.options import ProbeOptions as ProbeOptions
from .probes.run import probe as probe
from .probes.saved import load_probe as load_probe
from .probes.scikit import KNNProbe as KNNProbe
from .probes.scikit import LinearProbe as LinearProbe
from .readouts import build_readout as build_readout

# Weights released with the paper
from .reference.checkpoints import load_checkpoint as load_checkpoint

# Statistics over videos
from .statistics import balanced_accuracy as balanced_accuracy
from .statistics import bootstrap_interval as bootstrap_interval
from .statistics import mcnemar as mcnemar
from .statistics import paired_bootstrap as paired_bootstrap
from .statistics import share_interval as share_interval
from .tasks import build_task as build_task

# Train and evaluate
from .training.evaluate import evaluate as evaluate
from .training.forecast import RunForecast as RunForecast
from .training.forecast import forecast_training as forecast_training
from .training.options import EvaluateOptions as EvaluateOptions
from .training.options import TrainOptions as TrainOptions
from .training.runs import load_model as load_model
from .training.train import train_temporal as train_temporal

__all__ = [
    "ClipDataset",
    "CompareOptions",
    "CompareRunsOptions",
    "EvaluateOptions",
    "ExportOptions",
    "ExportReport",
    "KNNProbe",
    "LinearProbe",
    "ModelConfig",
    "PredictOptions",
    "ProbeOptions",
    "RunForecast",
    "TemporalModel",
    "TrainOptions",
    "balanced_accuracy",
    "bootstrap_interval",
    "build_core",
    "build_mixer",
    "build_readout",
    "build_task",
    "compare_probes",
    "compare_runs",
    "evaluate",
    "export_features",
    "fit_attentive",
    "fit_knn",
    "fit_linear",
    "forecast_training",
    "load_checkpoint",
    "load_model",
    "load_probe",
    "mcnemar",
    "paired_bootstrap",
    "predict",
    "probe",
    "share_interval",
    "to_numpy",
    "train_temporal",
]
