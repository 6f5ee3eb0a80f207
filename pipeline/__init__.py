"""Videos to tokens to cache: the public face.

    from vfz.pipeline import ExtractOptions, FeatureCache, extract

    report = extract(ExtractOptions(dataset="folder", root="videos", encoder="demo"))
    cache = FeatureCache(report.cache)
    clip = cache.read("train/walk/0001", frames=slice(0, 16), layers=("3",))
    tokens = clip.tokens(layer="3")  # float32 [T, N, D]

- Read a cache: `FeatureCache`, `TokenClip`, `TokenBatch`.
- Make one: `extract`, `ExtractOptions`, `ExtractReport`, `dry_run`.
- Find and describe caches: `find_cache`, `list_caches`, `describe_cache`.
- Look after them: `verify_cache`, `verify_encoder`, `repair_cache`, `convert`, `ConvertOptions`, `compare_caches`.
- Other labels for their videos: `label_cache`, `LabelOptions`, `LabelSet`; without some: `drop_videos`, `DropOptions`.
- The parts: `open_dataset`, `VideoDataset`, `VideoRecord`, `load_encoder`, `FrozenEncoder`, `Recipe`.
- What all share: `Progress`, `VfzError`.

A name is imported when it is first used, so that this import costs milliseconds and no torch. `__init__.pyi` lists the
names for editors and type checkers. What is not among them is private by convention: it may change at any time.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
