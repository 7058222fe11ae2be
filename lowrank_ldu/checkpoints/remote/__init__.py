"""Read safetensors on servers by byte ranges, without a copy of them.

`RemotePath` stands for a file there as `pathlib.Path` does for one here.
"""
