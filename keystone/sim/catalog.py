"""What the simulated world is made of: places, providers, device families, and how each family spells its JSON.

Names are invented. Three players are in the field, and no two order their keys alike; one writes a space after
colons. A decoder has no reason to prefer one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from keystone.kernels import encode as kernel
from keystone.kernels.seats import SHAPE_BEAT, SHAPE_ERROR, SHAPE_FATAL, SHAPE_SEEK, SHAPE_STALL, SHAPE_START, SHAPE_STARTUP, SHAPE_STOP

PROFILES: Final = 512  # combinations of dimensions; x ~400 B of text = 200 KB, half a second-level cache
REGIONS: Final = {
    "us-east": (("US", "CA"), ("orbit", "merid", "blue")),
    "us-west": (("US", "MX"), ("orbit", "pacif", "blue")),
    "eu-west": (("GB", "IE", "FR", "ES"), ("albion", "celt", "lumen")),
    "eu-mid": (("DE", "PL", "IT", "SE"), ("rhein", "nord", "adria")),
    "ap-south": (("IN",), ("deccan", "ganga")),
    "sa-east": (("BR", "AR", "CL"), ("selva", "pampa")),
}
REGION_SHARES: Final = (26, 14, 22, 18, 12, 8)
CDNS: Final = ("swift", "harbor", "polar")
CDN_SHARES: Final = (50, 30, 20)
#: device_type, os, app_version choices, style of its JSON, share of all devices
FAMILIES: Final = (
    ("tv", "tizen-8", ("5.12.0", "5.12.1"), 0, 22),
    ("tv", "webos-24", ("5.11.4", "5.12.1"), 0, 16),
    ("stick", "fireos-8", ("4.40.2", "4.41.0"), 0, 14),
    ("android", "android-15", ("9.3.1", "9.4.0", "9.4.1"), 1, 17),
    ("ios", "ios-19", ("9.3.0", "9.4.0"), 1, 16),
    ("web", "windows-11", ("26.9.1", "26.9.2"), 2, 10),
    ("web", "macos-16", ("26.9.2",), 2, 5),
)
#: What the device calls its network, the network whose figures it has (rows of ``network_figures.json``, by name), share
LINKS: Final = (("wifi", "fcc", 34), ("ethernet", "puffer", 31), ("wifi", "oboe", 17), ("4g", "oboe", 10), ("3g", "hsdpa", 8))
#: What each style repeats in every event (a session's first carries all): a television knows no more than that it is on a network.
LIVE: Final = (
    ("region", "device_type", "cdn", "isp"),
    ("region", "device_type", "cdn", "isp", "network"),
    ("device_type", "region", "isp", "cdn", "network"),
)  # fmt: skip
REASONS: Final = ("ended", "user", "error", "error")
ERROR_CODES: Final = ("net.timeout", "net.reset", "cdn.503", "decode.frame")
FATAL_CODES: Final = ("drm.license", "manifest.404", "decode.init", "net.unreachable")
NAMES: Final = {
    SHAPE_BEAT: "Heartbeat", SHAPE_START: "Start", SHAPE_STALL: "Buffer", SHAPE_STARTUP: "Buffer", SHAPE_SEEK: "Buffer",
    SHAPE_STOP: "Stop", SHAPE_ERROR: "Error", SHAPE_FATAL: "Error",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Profile:
    """One combination of dimensions that devices share. ``figures`` names their network's figures."""

    region: str
    country: str
    device_type: str
    os: str
    app_version: str
    cdn: str
    isp: str
    network: str
    figures: str
    style: int


class _Draws:
    """Splitmix64, so that the catalog is the same on every machine and numpy."""

    def __init__(self, seed: int) -> None:
        self._state = seed

    def below(self, limit: int) -> int:
        mask = (1 << 64) - 1
        self._state = self._state + 0x9E3779B97F4A7C15 & mask
        x = self._state
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        return (x ^ x >> 31) * limit >> 64

    def weighted(self, shares: tuple[int, ...]) -> int:
        left = self.below(sum(shares))
        for i, share in enumerate(shares):
            left -= share
            if left < 0:
                return i
        raise AssertionError("shares add up")


@cache
def profiles() -> tuple[Profile, ...]:
    """The profiles devices are drawn from, each as likely."""
    draws = _Draws(20)
    return tuple(_profile(draws) for _ in range(PROFILES))


def _profile(draws: _Draws) -> Profile:
    region = list(REGIONS)[draws.weighted(REGION_SHARES)]
    countries, isps = REGIONS[region]
    device_type, os, versions, style, _ = FAMILIES[draws.weighted(tuple(f[4] for f in FAMILIES))]
    cdn = CDNS[draws.weighted(CDN_SHARES)]
    links = tuple(link for link in LINKS if link[0] == "wifi" or (link[0] in ("3g", "4g")) == (style == 1))
    network, figures, _ = links[draws.weighted(tuple(link[2] for link in links))]
    country, isp = countries[draws.below(len(countries))], isps[draws.below(len(isps))]
    return Profile(region, country, device_type, os, versions[draws.below(len(versions))], cdn, isp, network, figures, style)


def texts(ladder_kbps: tuple[int, ...]) -> kernel.Texts:
    """Every prepared text of the encoder, for players that know this ladder."""
    text = np.zeros((kernel.STYLES, kernel.TEXTS, kernel.TEXT), np.uint8)
    size = np.zeros((kernel.STYLES, kernel.TEXTS), np.int32)
    for style in range(kernel.STYLES):
        for which, piece in _pieces(style, ladder_kbps).items():
            _store(text[style, which], piece)
            size[style, which] = len(piece)
    known = profiles()
    short, short_size = _blocks([_dimensions(p, LIVE[p.style]) for p in known], kernel.SHORT)
    every = ("region", "country", "device_type", "os", "app_version", "cdn", "isp", "network")
    long, long_size = _blocks([_dimensions(p, every) for p in known], kernel.LONG)
    styles = np.array([p.style for p in known], np.uint8)
    return kernel.Texts(text.reshape(-1), size.reshape(-1), short, short_size, long, long_size, styles)


def _spelled(style: int, text: str) -> bytes:
    """``text`` is written without spaces; the third style has one after each colon."""
    return (text.replace(":", ": ") if style == 2 else text).encode()


def _dimensions(profile: Profile, names: tuple[str, ...]) -> bytes:
    return b"".join(_spelled(profile.style, f',"{name}":"') + getattr(profile, name).encode() + b'"' for name in names)


def _pieces(style: int, ladder_kbps: tuple[int, ...]) -> dict[int, bytes]:
    """Texts of one style by their place in the kernel's table."""
    plain = {
        kernel.T_DEVICE: ('{"device_id":"d-' if style == 1 else ',"device_id":"d-' if style == 0 else '","device_id":"d-'),
        kernel.T_SESSION: '","session_id":"',
        kernel.T_SEQ: '","seq":',
        kernel.T_TS: ',"ts":' if style == 1 else '{"ts":',
        kernel.T_BUFFER: ',"buffer_ms":', kernel.T_DROPPED: ',"dropped_frames":', kernel.T_STARTUP: ',"startup_ms":',
        kernel.T_STALL: ',"stall_ms":', kernel.T_PHASE_STARTUP: ',"phase":"startup"', kernel.T_PHASE_SEEK: ',"phase":"seek"',
        kernel.T_USER: ',"user_id":"u-', kernel.T_TITLE: '","title_id":"t-', kernel.T_QUOTE: '"', kernel.T_END: "}\n",
    }  # fmt: skip
    for shape, name in NAMES.items():
        opening = (f'{{"event":"{name}","ts":', f'","event":"{name}","seq":', f',"event":"{name}","session_id":"')[style]
        plain[kernel.T_OPENING + shape] = opening
    plain |= {kernel.T_REASON + i: f',"reason":"{reason}"' for i, reason in enumerate(REASONS)}
    for first, fatal, codes in ((0, "false", ERROR_CODES), (4, "true", FATAL_CODES)):
        plain |= {kernel.T_CODE + first + i: f',"error_code":"{code}","fatal":{fatal}' for i, code in enumerate(codes)}
    plain |= {kernel.T_RUNG + i: f',"bitrate_kbps":{rate},"position_ms":' for i, rate in enumerate(ladder_kbps)}
    wide = {kernel.T_OPENING + s for s in NAMES} if style else set()
    wide |= {*range(kernel.T_CODE, kernel.T_CODE + 8), *range(kernel.T_RUNG, kernel.T_RUNG + kernel.RUNGS)}
    spelled = {which: _spelled(style, text) for which, text in plain.items()}
    for which, text in spelled.items():
        if len(text) > (64 if which in wide else 32):
            raise ValueError(f"a prepared text is too long for the encoder: {text!r}")
    return spelled


def _store(row: np.ndarray, text: bytes) -> None:
    row[: len(text)] = np.frombuffer(text, np.uint8)


def _blocks(blocks: list[bytes], width: int) -> tuple[np.ndarray, np.ndarray]:
    table = np.zeros((len(blocks), width), np.uint8)
    for row, block in zip(table, blocks, strict=True):
        if len(block) > width:
            raise ValueError(f"a profile's text is longer than {width} bytes: {block!r}")
        _store(row, block)
    return table.reshape(-1), np.array([len(block) for block in blocks], np.int32)
