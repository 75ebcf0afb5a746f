"""How a bucket is reached, by the usual AWS_* variables and files; and what its errors mean, in one line that says what to change.

One reading for both libraries that speak S3 here, obstore (checkpoints, uploads) and pyarrow (what pyiceberg reads and writes). Keys
come from the variables, else from the profile's files, else from where obstore and pyarrow look themselves: the identity of a pod, a
container or a machine. No message has a key in it, and nothing of the XML of an answer but its code.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keystone.errors import KeystoneError, StoreUnavailable, UsageError

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store

REQUEST_TIMEOUT_S: Final = 30  # of one request: 16 MB at 0.5 MB/s
CONNECT_TIMEOUT_S: Final = 5
RETRY_TIMEOUT_S: Final = 30  # obstore tries again by itself for so long; then whoever asked decides
RETRIES_MAX: Final = 4
LOOK_TIMEOUT_S: Final = 8  # of the first look at a bucket: who started a command waits for it
LOOK_RETRIES_MAX: Final = 2
KEYS_FRESH_S: Final = 300  # after which the profile's files are read again: whoever renews keys there needs no restart
REGION: Final = "us-east-1"  # where nobody says one: what servers of one region take
LINE_CHARACTERS_MAX: Final = 300  # of a foreign message

_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_TARGET: Final = re.compile(r" (?:for path \S+: )?Error performing ([A-Z]+) \S+ in [^-]*?(?:,[^-]*?)? ?- ")

#: Codes that only a person mends.
NEVER: Final = {
    "NoSuchBucket": "there is no such bucket: make it, or name another",
    "InvalidBucketName": "that is no name of a bucket: name another",
    "InvalidAccessKeyId": "the service does not know this access key: correct AWS_ACCESS_KEY_ID, or the profile",
    "SignatureDoesNotMatch": "the secret does not fit the access key: correct AWS_SECRET_ACCESS_KEY, or the profile",
    "AccessDenied": "these keys may not do that: allow s3:ListBucket, GetObject, PutObject, DeleteObject and AbortMultipartUpload there, or use other keys",
    "AllAccessDisabled": "the bucket is closed to everybody: name another",
    "AuthorizationHeaderMalformed": "the bucket is in another region: correct AWS_REGION",
    "PermanentRedirect": "the bucket is in another region: correct AWS_REGION",
    "IllegalLocationConstraintException": "the bucket is in another region: correct AWS_REGION",
    "MethodNotAllowed": "the endpoint does not speak S3: correct AWS_ENDPOINT_URL_S3",
}
#: Codes of what may heal, with what to do if it does not.
LATER: Final = {
    "ExpiredToken": "the credentials have expired: renew AWS_SESSION_TOKEN, or the profile's keys",
    "ExpiredTokenException": "the credentials have expired: renew AWS_SESSION_TOKEN, or the profile's keys",
    "TokenRefreshRequired": "the credentials have expired: renew AWS_SESSION_TOKEN, or the profile's keys",
    "InvalidToken": "the session token is not valid: renew AWS_SESSION_TOKEN, or the profile's keys",
    "RequestTimeTooSkewed": "this machine's clock is over 15 minutes from the service's: set it right, by NTP",
    "RequestExpired": "this machine's clock is over 15 minutes from the service's: set it right, by NTP",
    "SlowDown": "it asks for fewer requests",
}


# --- where, and as whom -----------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Access:
    """What the variables and the profile say. ``profile``: whose keys are taken from the files; None: they come from elsewhere."""

    endpoint: str | None
    region: str
    profile: str | None
    env: Mapping[str, str] = field(repr=False)

    def pyarrow_properties(self) -> dict[str, str]:
        """As pyiceberg names them. Without keys: the AWS library below reads the same variables and files."""
        named = {"s3.region": self.region, "s3.connect-timeout": str(CONNECT_TIMEOUT_S), "s3.request-timeout": str(REQUEST_TIMEOUT_S)}
        return named | ({"s3.endpoint": self.endpoint, "s3.force-virtual-addressing": "false"} if self.endpoint else {})


def access(env: Mapping[str, str] | None = None) -> Access:
    """Of this process. Raises ``UsageError`` for a profile that is nowhere, or has no keys that we can use."""
    env = os.environ if env is None else env
    name = env.get("AWS_PROFILE") or "default"
    profile = _profile(name, env)
    if profile is None and env.get("AWS_PROFILE"):
        raise UsageError(f"AWS_PROFILE={name}: there is no such profile in {' or '.join(map(str, _files(env)))}: correct it")
    settings = profile or {}
    has_keys = "AWS_ACCESS_KEY_ID" in env
    is_profile = not has_keys and "aws_access_key_id" in settings and "aws_secret_access_key" in settings
    if not has_keys and not is_profile and env.get("AWS_PROFILE"):
        raise UsageError(f"AWS_PROFILE={name}: the profile has no keys of its own: export what `aws configure export-credentials --format env` prints")
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or env.get("AWS_ENDPOINT") or settings.get("endpoint_url")
    region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or settings.get("region") or REGION
    return Access(endpoint.rstrip("/") if endpoint else None, region, name if is_profile else None, env)


def _files(env: Mapping[str, str]) -> tuple[Path, Path]:
    """Credentials first: they count where both say something."""
    home = Path(env.get("HOME") or "~").expanduser() / ".aws"
    return Path(env.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"), Path(env.get("AWS_CONFIG_FILE") or home / "config")


def _profile(name: str, env: Mapping[str, str]) -> dict[str, str] | None:
    """Its settings; None where it is in neither file."""
    found: dict[str, str] = {}
    is_there = False
    credentials, config = _files(env)
    for path, section in ((config, name if name == "default" else f"profile {name}"), (credentials, name)):
        parser = configparser.RawConfigParser(default_section="")
        try:
            parser.read_string(path.read_text("utf-8"))
        except OSError:
            continue
        except (configparser.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot be read as profiles ({type(error).__name__}): correct it") from None
        if parser.has_section(section):
            is_there = True
            found |= dict(parser.items(section))
    return found if is_there else None


def s3_store(bucket: str, *, is_look: bool = False) -> S3Store:
    """A client of a bucket. ``is_look``: one that gives up soon, for a person who waits."""
    import obstore

    found = access()
    timeout_s, retries, retry_s = (LOOK_TIMEOUT_S, LOOK_RETRIES_MAX, LOOK_TIMEOUT_S) if is_look else (REQUEST_TIMEOUT_S, RETRIES_MAX, RETRY_TIMEOUT_S)
    try:
        return obstore.store.S3Store(
            bucket,
            client_options={
                "timeout": timedelta(seconds=timeout_s),
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "allow_http": (found.endpoint or "").startswith("http://"),
            },
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=retry_s)},
            endpoint=found.endpoint,
            region=found.region,
            credential_provider=_Keys(found) if found.profile is not None else None,
        )
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise UsageError(f"s3://{bucket}: {one_line(error)}: look at the AWS_* variables") from error


class _Keys:
    """The profile's keys, read again from time to time."""

    def __init__(self, found: Access) -> None:
        self._found = found

    def __call__(self) -> S3Credential:
        profile = _profile(self._found.profile or "", self._found.env) or {}
        return {
            "access_key_id": profile.get("aws_access_key_id", ""),
            "secret_access_key": profile.get("aws_secret_access_key", ""),
            "token": profile.get("aws_session_token"),
            "expires_at": datetime.now(UTC) + timedelta(seconds=KEYS_FRESH_S),
        }


# --- what went wrong ----------------------------------------------------------------------------------------------------
def explained(url: str, error: BaseException) -> KeystoneError:
    """Ours for an error of obstore or pyarrow: ``UsageError`` where only a person mends it, else ``StoreUnavailable``."""
    from obstore import exceptions

    text = str(error)
    code, status = _found(_CODE, text), _found(_STATUS, text)
    known = code or next((name for name in (*NEVER, *LATER) if _is_said(name, text)), "")
    if known in NEVER or status == "301":
        return UsageError(f"{url}: {NEVER.get(known, NEVER['PermanentRedirect'])}{_denied(known, text)}")
    if known in LATER:
        return StoreUnavailable(f"{url}: {LATER[known]}")
    if reason := _unreachable(text):
        return StoreUnavailable(f"{url}: {reason}: look at AWS_ENDPOINT_URL_S3 and at the service")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or status in {"401", "403"}:
        return UsageError(f"{url}: refused ({status or code or 'no permission'}): look at the AWS_* variables and the bucket's policy")
    answer = " ".join(part for part in (status, code) if part)
    line = f"{url}: the service answered {answer}" if answer else f"{url}: {one_line(error)}"
    is_never = isinstance(error, exceptions.NotSupportedError | exceptions.InvalidPathError | exceptions.UnknownConfigurationKeyError)
    return UsageError(line) if is_never else StoreUnavailable(line)


def _found(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[1] if found else ""


def _is_said(code: str, text: str) -> bool:
    """Of pyarrow, which says ``AWS Error ACCESS_DENIED during HeadObject operation``; some codes it passes on as they are."""
    spelled = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", code).upper()
    return f"AWS Error {spelled} " in text or f"Unable to parse ExceptionName: {code} " in text


def _denied(code: str, text: str) -> str:
    """What was not allowed."""
    method = re.search(r"Error performing ([A-Z]+) ", text) if code == "AccessDenied" else None
    return f" ({method[1]} was refused)" if method else ""


def _unreachable(text: str) -> str:
    """Why nobody answered, without the request: its URL is known, its retries are no news."""
    if "Error performing" not in text and "AWS Error NETWORK_CONNECTION" not in text:
        return ""
    if "169.254.169.254" in text or "Failed to get credentials" in text:
        return "no keys were found"
    for sign, reason in (
        ("Connection refused", "nothing listens there"), ("curlCode: 7,", "nothing listens there"), ("dns error", "there is no such host"),
        ("curlCode: 6,", "there is no such host"), ("kind: Timeout", "it does not answer in time"), ("curlCode: 28,", "it does not answer in time"),
        ("certificate", "its certificate is not trusted"), ("error sending request", "the connection failed"), ("curlCode", "the connection failed"),
    ):  # fmt: skip
        if sign in text:
            return reason
    return ""


def one_line(error: BaseException) -> str:
    """The first line of a message, shortened, without the request it was about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return _TARGET.sub(" ", lines[0])[:LINE_CHARACTERS_MAX].strip()
