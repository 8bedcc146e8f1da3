"""Settings of a client: arguments first, then the environment variables of the Rust worker, then defaults."""

from __future__ import annotations

import os
import socket
import urllib.parse
from dataclasses import dataclass
from typing import Optional, TypedDict, Union

from . import _native
from .errors import SettingError


class Options(TypedDict, total=False):
    """Keyword arguments of `rounds`, `run` and `flower.run`. What is left out comes from the environment variable.

    token: bearer token of the master (`FL_TOKEN`).
    ca_cert: path of authorities in PEM that sign the master's certificate (`CA_CERT`); default: the system's.
    client_cert: path of a PEM file with certificate and key, for mutual TLS (`CLIENT_CERT`).
    give_up_s: seconds without a master after which `Unreachable` is raised, 0 = never (`GIVE_UP_S`, 0).
    drain_s: seconds that SIGTERM leaves to an upload in flight (`DRAIN_S`, 10).
    quantizer: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16 or none (`QUANTIZER`); default: the master's, or MSQ_v2.
    bits: bits per code, 1 to 8, or "auto" = as few as reach `target_nmse` (`BITS`); default: the master's, or 4.
    entropy: entropy-code updates (`ENTROPY`, True).
    rdo: choose codes under a trellis: 1 to 5 % fewer bytes, slower (`RDO`, False).
    error_feedback: add what quantization lost to the next update: True, False, or "auto" = where it is worth its
        bytes (`ERROR_FEEDBACK`, "auto").
    target_nmse: with bits="auto": |sent - delta|^2 / |delta|^2 at most, 1e-9 to 0.9 (`TARGET_NMSE`, 0.0095).
    update_bytes: with bits="auto": bytes of an update at most, instead of `target_nmse` (`UPDATE_BYTES`).
    down_bits: bits of the downloaded model's codes, 1 to 8, 0 = the exact model (`DOWN_BITS`, 0).
    down_quantizer: quantizer of the downloaded model (`DOWN_QUANTIZER`, SDQ).
    state_dir: folder that keeps the residual of error feedback over a restart (`WORKER_STATE_DIR`).
    seed: seed of stochastic rounding and of pauses (`SEED`, 42).
    threads: threads that encode; the bytes do not depend on it (`THREADS`); default: 1 below a million parameters,
        else one a core, at most 8.
    """

    token: Optional[str]
    ca_cert: Optional[str]
    client_cert: Optional[str]
    give_up_s: float
    drain_s: float
    quantizer: Optional[str]
    bits: Union[int, str, None]
    entropy: bool
    rdo: bool
    error_feedback: Union[bool, str]
    target_nmse: float
    update_bytes: Optional[int]
    down_bits: int
    down_quantizer: Optional[str]
    state_dir: Optional[str]
    seed: int
    threads: Optional[int]


@dataclass(frozen=True)
class Address:
    """Where the master is."""

    https: bool
    host: str
    port: Optional[int]
    path: str
    url: str


@dataclass(frozen=True)
class Settings:
    """Checked settings."""

    address: Address
    worker_id: str
    token: Optional[str]
    ca_cert: Optional[str]
    client_cert: Optional[str]
    give_up_s: float
    drain_s: float
    quantizer: Optional[str]
    bits: Optional[str]
    entropy: bool
    rdo: bool
    error_feedback: Optional[bool]
    target_nmse: float
    update_bytes: Optional[int]
    down_bits: int
    down_quantizer: Optional[str]
    state_dir: Optional[str]
    seed: int
    threads: Optional[int]


_BOOLS = {"true": True, "false": False, "1": True, "0": False}


def check(master=None, worker_id=None, options=None) -> Settings:
    """The settings of `master`, `worker_id` and `options`.

    Raises:
        SettingError: a value that cannot be used, or an option that does not exist.
    """
    options = dict(options or {})
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        known = ", ".join(sorted(Options.__annotations__))
        raise SettingError(f"there is no option `{unknown[0]}`: the options are {known}")

    def given(name, variable=None):
        value = options.get(name)
        if value is None:
            value = os.environ.get(variable or name.upper()) or None
        return value

    def number(name, default, low, high, kind=float):
        value = given(name)
        try:
            value = default if value is None else kind(value)
        except (TypeError, ValueError):
            raise SettingError(f"{name}={value!r} is no number") from None
        if value is not None and not low <= value <= high:
            raise SettingError(f"{name}={value!r}: use {low:g} to {high:g}")
        return value

    def switch(name, default):
        value = given(name)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        if str(value).lower() not in _BOOLS:
            raise SettingError(f"{name}={value!r}: use True or False")
        return _BOOLS[str(value).lower()]

    feedback = given("error_feedback")
    feedback = None if feedback in (None, "auto") else switch("error_feedback", None)
    bits = given("bits")
    if isinstance(bits, bool) or bits is not None and str(bits).lower() not in {"auto", *map(str, range(1, 9))}:
        raise SettingError(f"bits={bits!r}: use 1 to 8, or 'auto'")
    update_bytes = number("update_bytes", None, 0, 2**32, int) or None
    if update_bytes and str(bits).lower() != "auto":
        raise SettingError("update_bytes needs bits='auto'")
    settings = Settings(
        address=_address(master or os.environ.get("MASTER_ADDR") or "http://master-service:5000"),
        worker_id=_worker_id(worker_id or os.environ.get("WORKER_ID") or socket.gethostname()),
        token=_token(given("token", "FL_TOKEN")),
        ca_cert=_file("ca_cert", given("ca_cert")),
        client_cert=_file("client_cert", given("client_cert")),
        give_up_s=number("give_up_s", 0.0, 0, 1e9),
        drain_s=number("drain_s", 10.0, 0, 3600),
        quantizer=_quantizer("quantizer", given("quantizer")),
        bits=None if bits is None else str(bits).lower(),
        entropy=switch("entropy", True),
        rdo=switch("rdo", False),
        error_feedback=feedback,
        target_nmse=number("target_nmse", 0.0095, 1e-9, 0.9),
        update_bytes=update_bytes,
        down_bits=number("down_bits", 0, 0, 8, int),
        down_quantizer=_quantizer("down_quantizer", given("down_quantizer")),
        state_dir=given("state_dir", "WORKER_STATE_DIR"),
        seed=number("seed", 42, 0, 2**64 - 1, int),
        threads=number("threads", None, 1, 256, int),
    )
    if settings.down_quantizer and not settings.down_bits:
        raise SettingError("down_quantizer needs down_bits")
    if settings.client_cert and not settings.address.https:
        raise SettingError("client_cert needs a master at https://")
    return settings


def _address(url: str) -> Address:
    advice = f"master={url!r}: give an address such as http://127.0.0.1:5000 or https://host"
    if not isinstance(url, str):
        raise SettingError(advice)
    parts = urllib.parse.urlsplit(url.rstrip("/"))
    try:
        port = parts.port
    except ValueError:
        raise SettingError(advice) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingError(advice)
    return Address(parts.scheme == "https", parts.hostname, port, parts.path, url.rstrip("/"))


def _worker_id(name) -> str:
    try:
        _native.check_worker_id(str(name))
    except ValueError as error:
        raise SettingError(f"worker_id={name!r}: {error}") from None
    return str(name)


def _token(token):
    if token and not all("!" <= character <= "~" for character in token):
        raise SettingError("token: use printable ASCII without spaces")
    return token or None


def _file(name, path):
    if path is not None and not os.path.isfile(path):
        raise SettingError(f"{name}={os.fspath(path)!r}: there is no such file")
    return None if path is None else os.fspath(path)


def _quantizer(name, value):
    if value is None:
        return None
    for known in _native.QUANTIZERS:
        if known.lower() == str(value).lower():
            return known
    raise SettingError(f"{name}={value!r}: use one of {', '.join(_native.QUANTIZERS)}")
