"""What models and probes are fed with: clips, tokens, targets and features, in batches.

videos, sampling    which videos, and which of their frames make a clip
tokens, online      the tokens of clips: out of caches, or from the encoder itself
targets             what is known about every frame of a clip, besides its class
loader, dataset     clips in batches for `vfz train-temporal`, and one by one for a model of your own
features, pooling   the token maps that a probe is fitted on, and what it sees of them
export, options     pooled features as a file for other programs; defaults of clips
derived             a temporal module's outputs, computed once and kept
"""
