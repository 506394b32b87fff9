#!/usr/bin/env python3
"""Writes a container image archive: image.py [--user UID:GID] NAME OUT.tar LAYER.tar[,LAYER.tar...] [ENTRYPOINT ...]

The layers lie on each other: the first is a whole root file system (a static binary, or the output of
`mmdebstrap --variant=extract`), those behind it add to it.
"""
import hashlib, io, json, platform, sys, tarfile

arguments = sys.argv[1:]
user = None
if arguments[0] == "--user":
    user = arguments[1]
    arguments = arguments[2:]
name, out, layers, *entrypoint = arguments


def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


layers = [(path, digest(path)) for path in layers.split(",")]
settings = {"Entrypoint": entrypoint or None, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
if user:
    settings["User"] = user
config = json.dumps({
    "architecture": {"aarch64": "arm64"}.get(platform.machine(), "amd64"), "os": "linux",
    "config": settings,
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + sha for _, sha in layers]},
    "history": [{} for _ in layers],
}).encode()
config_name = hashlib.sha256(config).hexdigest() + ".json"
manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": [sha + "/layer.tar" for _, sha in layers]}]).encode()
with tarfile.open(out, "w") as archive:
    for path, blob in ((config_name, config), ("manifest.json", manifest)):
        member = tarfile.TarInfo(path)
        member.size = len(blob)
        archive.addfile(member, io.BytesIO(blob))
    for path, sha in layers:
        archive.add(path, arcname=sha + "/layer.tar", recursive=False)
