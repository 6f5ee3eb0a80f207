"""The files of a cache but its tokens: header, plans, ledger, commits, catalog, calibration, golden frames."""
