"""Files that are rich in everything: few devices, so that sessions meet duplicates, late events, restarts and long runs; and broken lines."""

from __future__ import annotations

import json
import random

from tests import corpus

KINDS = ["Start", "Heartbeat", "Heartbeat", "Buffer", "Buffer", "Buffer", "Stop", "Error", "Ad", "bUFFER"]
TS = 1_790_000_000_000


def event(rng: random.Random, at: int) -> dict[str, object]:
    """One event of a small world."""
    found: dict[str, object] = {"event": rng.choice(KINDS), "ts": TS + at * 700 + rng.randrange(-3_000, 3_000)}
    found |= {"device_id": f"d-{rng.randrange(12)}", "session_id": f"s-{rng.randrange(2)}"}
    if rng.random() < 0.8:
        found["seq"] = rng.choice([at // 12 + rng.randrange(-3, 4), rng.randrange(-80, 200), at // 12, at // 12, 2**40])
    if rng.random() < 0.2:
        found["phase"] = rng.choice(["startup", "seek", "other", 5, None])
    if rng.random() < 0.5:
        found["bitrate_kbps"] = rng.choice([235, 100, 4300, 5800, 10**12, -5, "x", 2999.9])
    if rng.random() < 0.2:
        found["fatal"] = rng.choice([True, False, 1])
    for name in rng.sample(["user_id", "title_id", "region", "device_type", "cdn", "isp"], rng.randrange(4)):
        found[name] = rng.choice(["a", "b", "\u00e9", "", 7, None, True, "x" * 40])
    if rng.random() < 0.02:
        found["ts"] = rng.choice([0, 2**53 - 1, -1, "soon", 1.5e12])
    return found


def dirty_text(seed: int, events: int, *, broken_share: float = 0.1) -> bytes:
    """NDJSON of that many lines, some of them the corpus's, in several spellings, with CRs and blank lines."""
    rng = random.Random(seed)
    lines = []
    for at in range(events):
        if rng.random() < broken_share:
            lines.append(rng.choice(corpus.SMALL))
            continue
        items = list(event(rng, at).items())
        if rng.random() < 0.3:
            rng.shuffle(items)
        text = json.dumps(dict(items), separators=rng.choice([(",", ":"), (", ", ": ")]), ensure_ascii=rng.random() < 0.5)
        lines.append(text.encode() + rng.choice([b"", b"", b"\r", b" "]))
        if rng.random() < 0.02:
            lines[-1] = lines[-1][: rng.randrange(len(lines[-1]))]
    return b"\n".join(lines) + rng.choice([b"", b"\n", b"\r\n"])
