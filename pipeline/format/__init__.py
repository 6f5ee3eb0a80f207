"""The files of a cache, all but its tokens: header, plans, ledger, commits, catalog, calibration, golden frames."""
