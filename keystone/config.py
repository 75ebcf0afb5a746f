"""One typed tree of every limit and default: keystone.toml, then KEYSTONE_* variables, then flags."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, model_validator


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SessionConfig(_Frozen):
    timeout_ms: int = 90_000  # log time without an event, after which a session closes
    grace_ms: int = 10_000  # log time a stopped session is kept for late events and duplicates
    sessions_max: int = 1 << 26  # active sessions of one table; 67M x ~150 B = 10 GB, beyond any one machine here


class DetectionConfig(_Frozen):
    loop_threshold: int = 3  # stalls in a row that make a buffering loop
    open_stall_ms: int = 10_000  # log time of silence in a stall
    ladder_kbps: tuple[int, ...] = (235, 375, 560, 750, 1050, 1750, 2350, 3000, 4300, 5800)

    @model_validator(mode="after")
    def _check(self) -> DetectionConfig:
        if not self.ladder_kbps or list(self.ladder_kbps) != sorted(set(self.ladder_kbps)):
            raise ValueError("detection.ladder_kbps must list rising bitrates, each once")
        if self.loop_threshold < 1:
            raise ValueError("detection.loop_threshold must be at least 1")
        return self


class LakeConfig(_Frozen):
    row_group_rows: int = 131_072  # buffered rows of one partition; x ~250 B a row = 32 MB
    file_rows_max: int = 4 << 20  # ~120 MB of Parquet
    file_age_max_ms: int = 10_000


class Config(_Frozen):
    session: SessionConfig = SessionConfig()
    detection: DetectionConfig = DetectionConfig()
    lake: LakeConfig = LakeConfig()
