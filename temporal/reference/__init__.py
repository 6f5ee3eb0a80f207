"""Weights released by others, as modules of this library.

    checkpoints    the paper's Lightning checkpoints (arXiv 2605.19137): whole as a `ReferenceModel`, `load_checkpoint`;
                   part by part with `load_core`, `load_mixer`, `load_readout`
    rvm            the recurrent core of the original RVM checkpoints (arXiv 2512.13684): `load_rvm_npz`
    mapping        how released files name the weights of each part, and what sizes these have

Every tensor is used, or refused by name. Nothing in a file is executed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
