"""Videos to tokens to cache: datasets, decoding, the frozen encoder, the stores and `FeatureCache`."""
