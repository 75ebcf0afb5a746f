"""A bucket of a real server passes the suite, with and without a prefix; and whatever happens to a request, what comes of it is right or one clear line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keystone import buckets, store_objects
from keystone.checkpoint import Checkpoints
from keystone.errors import StoreUnavailable, UsageError
from keystone.store import Store, look_at_bucket, open_store
from tests.conformance.store_suite import StoreSuite
from tests.s3_faults import S3Proxy
from tests.s3_fixtures import set_variables
from tests.s3_server import ACCESS_KEY, SECRET_KEY, S3Server


class TestS3Store(StoreSuite):
    @pytest.fixture
    def store(self, bucket: str) -> Store:
        self.url = f"s3://{bucket}/some/prefix"
        return open_store(self.url)

    def again(self, store: Store) -> Store:
        return open_store(self.url)

    def test_a_neighbour_is_not_seen(self, bucket: str, store: Store) -> None:
        open_store(f"s3://{bucket}/some/prefix2").put("x", [b"1"])
        open_store(f"s3://{bucket}").put("y", [b"1"])
        assert store.names("") == []
        assert open_store(f"s3://{bucket}").names("") == ["some/prefix2/x", "y"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up at once."""
    monkeypatch.setattr(buckets, "RETRIES_MAX", 1)
    monkeypatch.setattr(buckets, "RETRY_TIMEOUT_S", 1)
    monkeypatch.setattr(buckets, "REQUEST_TIMEOUT_S", 1)
    monkeypatch.setattr(buckets, "LOOK_TIMEOUT_S", 1)


@pytest.mark.usefixtures("quick")
class TestFaults:
    @pytest.mark.parametrize("kind", ["lost", "InternalError", "ConditionalRequestConflict", "SlowDown", "reset"])
    def test_one_such_answer_changes_nothing(self, proxied: S3Proxy, bucket: str, kind: str) -> None:
        store = open_store(f"s3://{bucket}/x")
        for name, want in (("a", True), ("b", True)):
            rule = proxied.add("PUT", f"/x/{name}$", kind, times=1)
            try:
                made = store.put_new(name, [name.encode()])
            except StoreUnavailable:  # it was not made, so the same again is right
                assert kind == "reset"
                made = store.put_new(name, [name.encode()])
            assert made is want
            assert rule.hits == 1
            assert bytes(store.get(name)) == name.encode()
            assert not store.put_new(name, [b"another"])
        for method, call in (("PUT", lambda: store.put("a", [b"new"])), ("GET", lambda: store.get("a")), ("GET", lambda: store.names(""))):
            if kind != "ConditionalRequestConflict":
                proxied.add(method, "", kind, times=1)
                call()
        assert bytes(store.get("a")) in (b"a", b"new")

    def test_a_lost_answer_for_what_another_made(self, proxied: S3Proxy, bucket: str) -> None:
        store = open_store(f"s3://{bucket}/x")
        assert store.put_new("a", [b"theirs"])
        proxied.add("PUT", "/x/a$", "lost", times=1)
        assert not store.put_new("a", [b"ours"])

    def test_every_epoch_has_one_owner_while_answers_are_lost(self, proxied: S3Proxy, bucket: str) -> None:
        proxied.add("PUT", "/epochs/", "lost", times=6)
        proxied.add("PUT", "/epochs/", "InternalError", times=2)
        stores = [Checkpoints(open_store(f"s3://{bucket}/state")) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            epochs = [pool.submit(checkpoints.claim, "p00000", f"racer-{i}") for i, checkpoints in enumerate(stores)]
            found = [epoch.result() for epoch in epochs]
        assert len(set(found)) == 8
        assert stores[0].current("p00000") == max(found)

    @pytest.mark.parametrize(
        ("kind", "error", "line"),
        [
            ("SlowDown", StoreUnavailable, "it asks for fewer requests"),
            ("InternalError", StoreUnavailable, "the service answered 500 InternalError"),
            ("RequestTimeout", StoreUnavailable, "the service answered 400 RequestTimeout"),
            ("reset", StoreUnavailable, "the connection failed: look at AWS_ENDPOINT_URL_S3"),
            ("ExpiredToken", StoreUnavailable, "the credentials have expired: renew AWS_SESSION_TOKEN"),
            ("RequestTimeTooSkewed", StoreUnavailable, "clock is over 15 minutes from the service's: set it right"),
            ("NoSuchBucket", UsageError, "there is no such bucket: make it, or name another"),
            ("AccessDenied", UsageError, "these keys may not do that: allow"),
            ("InvalidAccessKeyId", UsageError, "does not know this access key: correct AWS_ACCESS_KEY_ID"),
            ("SignatureDoesNotMatch", UsageError, "the secret does not fit the access key: correct AWS_SECRET_ACCESS_KEY"),
        ],
    )
    def test_what_stays_is_one_line(self, proxied: S3Proxy, bucket: str, kind: str, error: type[Exception], line: str) -> None:
        store = open_store(f"s3://{bucket}/x")
        store.put("there", [b"1"])
        proxied.add("", "", kind)
        calls = [
            lambda: store.put("a", [b"1"]), lambda: store.put_new("b", [b"1"]), lambda: store.get("there"), lambda: store.names(""),
            lambda: store.delete(["there"]), lambda: store.put("large", [bytes(17 << 20)]),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(error, match=line) as caught:
                call()
            assert_one_line(caught.value, f"s3://{bucket}/x: ")
        with pytest.raises(UsageError, match=line) as caught:
            look_at_bucket(f"s3://{bucket}/x", makes_once=True)
        assert_one_line(caught.value, f"s3://{bucket}/x: ")
        proxied.clear()
        assert store.names("") == ["there"], "what failed left nothing, or all of it"

    def test_an_answer_that_does_not_come_in_time(self, proxied: S3Proxy, bucket: str) -> None:
        proxied.add("PUT", "/x/a$", "lost", wait_s=1.5)
        with pytest.raises(StoreUnavailable, match="does not answer in time") as caught:
            open_store(f"s3://{bucket}/x").put("a", [b"1"])
        assert_one_line(caught.value, f"s3://{bucket}/x: ")
        proxied.clear()
        assert open_store(f"s3://{bucket}/x").put_new("a", [b"1"]), "it was applied, and is ours"

    def test_a_service_that_refuses_conditions_is_refused_for_epochs(self, proxied: S3Proxy, bucket: str) -> None:
        look_at_bucket(f"s3://{bucket}/x", makes_once=True)
        conditional = proxied.add("PUT", "/x/keystone-probe-", "NotImplemented")
        conditional.is_conditional = True
        with pytest.raises(UsageError, match=r"does not keep the condition If-None-Match.*: --state DIR, or another service"):
            look_at_bucket(f"s3://{bucket}/x", makes_once=True)
        look_at_bucket(f"s3://{bucket}/x", makes_once=False)
        proxied.clear()
        assert open_store(f"s3://{bucket}").names("") == []


@pytest.mark.s3
def test_a_service_that_overlooks_conditions_is_refused_for_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that checks no signatures: the condition is among what is signed."""
    with S3Server("moto") as server, S3Proxy(server.port) as proxy:
        set_variables(monkeypatch, server.env(proxy.url))
        url = f"s3://{server.make_bucket('bucket')}/x"
        look_at_bucket(url, makes_once=True)
        rule = proxy.add("PUT", "/x/keystone-probe-", "unconditional")
        with pytest.raises(UsageError, match=r"does not keep the condition If-None-Match.*: --state DIR, or another service"):
            look_at_bucket(url, makes_once=True)
        assert rule.hits == 3
        look_at_bucket(url, makes_once=False)
        assert server.names("bucket") == []


@pytest.mark.usefixtures("quick")
class TestWhereTo:
    def test_no_such_bucket(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
        set_variables(monkeypatch, s3.env())
        with pytest.raises(UsageError, match="there is no such bucket: make it"):
            look_at_bucket("s3://nowhere-at-all/x", makes_once=False)

    @pytest.mark.slow
    @pytest.mark.parametrize(("endpoint", "line"), [("http://127.0.0.1:9", "nothing listens there"), ("http://no-such-host.invalid", "there is no such host")])
    def test_wrong_endpoints(self, monkeypatch: pytest.MonkeyPatch, endpoint: str, line: str) -> None:
        set_variables(monkeypatch, {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden"})
        with pytest.raises(UsageError, match=f"{line}: look at AWS_ENDPOINT_URL_S3") as caught:
            look_at_bucket("s3://bucket/x", makes_once=True)
        assert_one_line(caught.value, "s3://bucket/x: ")

    def test_a_wrong_secret(self, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-but-wrong")
        if s3.kind == "moto":  # believes everything
            look_at_bucket(f"s3://{bucket}/x", makes_once=True)
            return
        with pytest.raises(UsageError, match="correct AWS_SECRET_ACCESS_KEY") as caught:
            look_at_bucket(f"s3://{bucket}/x", makes_once=True)
        assert_one_line(caught.value, f"s3://{bucket}/x: ")

    def test_keys_of_a_profile(self, s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        credentials, config = tmp_path / "credentials", tmp_path / "config"
        credentials.write_text(f"[other]\naws_access_key_id = no\n[mine]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
        config.write_text(f"[profile mine]\nendpoint_url = {s3.url}\nregion = us-east-1\n[profile role]\nrole_arn = x\n")
        files = {"AWS_SHARED_CREDENTIALS_FILE": str(credentials), "AWS_CONFIG_FILE": str(config)}
        set_variables(monkeypatch, {**files, "AWS_PROFILE": "mine"})
        store = open_store(f"s3://{bucket}/x")
        assert store.put_new("a", [b"1"])
        assert store.names("") == ["a"]
        for name, line in (("role", "has no keys of its own: export what"), ("nobody", "there is no such profile in")):
            monkeypatch.setenv("AWS_PROFILE", name)
            with pytest.raises(UsageError, match=line) as caught:
                open_store(f"s3://{bucket}/x")
            assert_one_line(caught.value, f"AWS_PROFILE={name}: ")
        monkeypatch.setenv("AWS_PROFILE", "mine")
        credentials.write_text("rubbish")
        with pytest.raises(UsageError, match="cannot be read as profiles"):
            open_store(f"s3://{bucket}/x")


def test_a_doctor_looks_at_a_bucket(proxied: S3Proxy, bucket: str) -> None:
    from keystone.run.doctor import _bucket

    url = f"s3://{bucket}/x"
    assert [check.state for check in _bucket(url)] == ["ok"]
    proxied.add("PUT", "/x/keystone-probe-", "NotImplemented").is_conditional = True
    assert [check.state for check in _bucket(url)] == ["ok", "note"]
    proxied.add("PUT", "", "AccessDenied")
    with pytest.raises(UsageError, match="these keys may not do that"):
        list(_bucket(url))


def test_parts_are_uploaded_beside_each_other(proxied: S3Proxy, bucket: str) -> None:
    store = open_store(f"s3://{bucket}/x")
    store.put("large", [bytes(20 << 20), b"x" * (20 << 20)])
    parts = [path for method, path in proxied.seen if method == "PUT" and "partNumber=" in path]
    assert len(parts) == -(-(40 << 20) // store_objects.PART_BYTES)
    assert len(store.get("large")) == 40 << 20


def assert_one_line(error: Exception, begin: str) -> None:
    text = str(error)
    assert text.startswith(begin)
    for hidden in ("\n", "AKIAHIDDEN", SECRET_KEY, ACCESS_KEY, "hidden", "<", "made for a test"):
        assert hidden not in text
