"""Weights released by others, as modules of this library.

    checkpoints    the paper's Lightning checkpoints (arXiv 2605.19137), whole (`load_checkpoint`) or part by part
    rvm            the recurrent core of the original RVM checkpoints (arXiv 2512.13684), `load_rvm_npz`
    mapping        how released files name the weights of each part, and what sizes these have

Every tensor is used, or refused by name. Nothing in a file is executed.
"""
