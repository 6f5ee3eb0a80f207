"""Reading a cache: windows of tokens by video, time, layer and part; no torch and no encoder."""
