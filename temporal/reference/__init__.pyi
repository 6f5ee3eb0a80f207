from .checkpoints import ReferenceModel as ReferenceModel
from .checkpoints import load_checkpoint as load_checkpoint
from .checkpoints import load_core as load_core
from .checkpoints import load_mixer as load_mixer
from .checkpoints import load_readout as load_readout
from .rvm import load_rvm_npz as load_rvm_npz

__all__ = ["ReferenceModel", "load_checkpoint", "load_core", "load_mixer", "load_readout", "load_rvm_npz"]
