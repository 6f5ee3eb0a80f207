"""The command line. A command parses its options, calls one public function and renders what it returns.

Commands: extract, train (`train-temporal`, `evaluate`), probe, cache, workflow (`run`, `demo`). All of them use options
(dataclasses as flags) and console (progress, tables, JSON); main turns an error into one line and an exit code.
"""
