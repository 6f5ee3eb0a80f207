# Read a cache
from .cache.feature_cache import FeatureCache as FeatureCache
from .cache.tokens import TokenBatch as TokenBatch
from .cache.tokens import TokenClip as TokenClip

# What datasets are, and how one is opened
from .datasets import open_dataset as open_dataset
from .datasets.base import VideoDataset as VideoDataset
from .datasets.base import VideoRecord as VideoRecord

# The encoder
from .encoder.model import FrozenEncoder as FrozenEncoder
from .encoder.model import load_encoder as load_encoder

# Every error of vfz is a VfzError
from .errors import VfzError as VfzError

# Make a cache
from .extraction.dry_run import dry_run as dry_run
from .extraction.extract import ExtractReport as ExtractReport
from .extraction.extract import extract as extract
from .extraction.options import ExtractOptions as ExtractOptions

# What its videos are called; find, describe, verify, repair, convert
from .format.folder import find_cache as find_cache
from .format.labels import LabelSet as LabelSet
from .maintenance.convert import convert as convert
from .maintenance.drop import drop_videos as drop_videos
from .maintenance.info import compare_caches as compare_caches
from .maintenance.info import describe_cache as describe_cache
from .maintenance.info import list_caches as list_caches
from .maintenance.label import label_cache as label_cache
from .maintenance.options import ConvertOptions as ConvertOptions
from .maintenance.options import DropOptions as DropOptions
from .maintenance.options import LabelOptions as LabelOptions
from .maintenance.repair import repair_cache as repair_cache
from .maintenance.verify import verify_cache as verify_cache
from .maintenance.verify.encoder import verify_encoder as verify_encoder

# How long work tells what it is doing; what decides a stored number
from .progress import Progress as Progress
from .recipe import Recipe as Recipe

__all__ = [
    "ConvertOptions",
    "DropOptions",
    "ExtractOptions",
    "ExtractReport",
    "FeatureCache",
    "FrozenEncoder",
    "LabelOptions",
    "LabelSet",
    "Progress",
    "Recipe",
    "TokenBatch",
    "TokenClip",
    "VfzError",
    "VideoDataset",
    "VideoRecord",
    "compare_caches",
    "convert",
    "describe_cache",
    "drop_videos",
    "dry_run",
    "extract",
    "find_cache",
    "label_cache",
    "list_caches",
    "load_encoder",
    "open_dataset",
    "repair_cache",
    "verify_cache",
    "verify_encoder",
]
