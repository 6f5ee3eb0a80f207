"""Probes and runs side by side: what `vfz compare` and `vfz probe compare` read, work out, draw and write.

results    what a folder has to compare: a probe's result, a run's evaluations
compare    results of one task, split and label set, and each against the baseline
charts     the figures, as SVG
report     `compare_runs` and `compare_probes`, the public calls: tables as CSV and JSON, and one HTML page
"""
