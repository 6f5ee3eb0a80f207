"""Tokens to answers: the public face of what is trained and measured on cached tokens.

    from vfz.temporal import ProbeOptions, TrainOptions, fit_linear, load_model, probe, train_temporal

    report = train_temporal(TrainOptions(core="gmmix", epochs=20))
    model, run = load_model(report.run)
    probe(ProbeOptions(probe="attentive", temporal=report.run))

- Your own model on cached tokens: `ClipDataset`; pooled features as arrays, for scikit-learn and the like: `to_numpy`;
  as a file for pandas, DuckDB or R: `export_features`, `ExportOptions`, `ExportReport`.
- The parts of ours: `build_core`, `build_mixer`, `build_readout`, `build_task`, `TemporalModel`, `ModelConfig`.
- Train and evaluate: `train_temporal`, `TrainOptions`, `evaluate`, `EvaluateOptions`, `load_model`; what a run takes:
  `forecast_training`, `RunForecast`.
- Weights released with the paper: `load_checkpoint`.
- Probe: `probe`, `ProbeOptions`, `fit_linear`, `fit_attentive`, `fit_knn`, `compare_probes`, `CompareOptions`; as
  scikit-learn's estimators: `LinearProbe`, `KNNProbe`.
- Runs and probes side by side: `compare_runs`, `CompareRunsOptions`.
- Use what was trained: `predict`, `PredictOptions`, and `load_probe` for what a probe has kept.
- Statistics: `share_interval`, `balanced_accuracy`, `bootstrap_interval`, `mcnemar`, `paired_bootstrap`.

A name is imported when it is first used, so that this import costs milliseconds and no torch. `__init__.pyi` lists the
names for editors and type checkers. What is not among them is private by convention: it may change at any time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
