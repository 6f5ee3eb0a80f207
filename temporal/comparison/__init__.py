"""Probes side by side: what `vfz probe compare` reads, works out, draws and writes.

compare    results out of `probe.json`, and each against the baseline
charts     the figures, as SVG
report     `compare_probes`, the public call: tables as CSV and JSON, and one HTML page
"""
