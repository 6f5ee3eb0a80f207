"""Probes side by side: what `vfz probe compare` reads, works out, draws and writes."""
