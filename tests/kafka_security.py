"""What the brokers of the tests demand of clients: TLS, a login, permission. All certificates are made anew and mean nothing elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
#: Who a client with a certificate of the cluster's authority is, when it does not log in besides.
CERTIFIED_CLIENT = "certified"

_MODULES = {
    "PLAIN": "plain.PlainLoginModule",
    "SCRAM-SHA-256": "scram.ScramLoginModule",
    "SCRAM-SHA-512": "scram.ScramLoginModule",
    "OAUTHBEARER": "oauthbearer.OAuthBearerLoginModule",
}
_TRUSTING = "org.apache.kafka.common.security.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"


@dataclass(frozen=True)
class Security:
    """The CLIENT listener speaks TLS; with users or OAUTHBEARER also SASL; with ``authorize``, what no ACL allows is denied.

    ``users``: name to password, for PLAIN and SCRAM. ``oauthbearer``: also takes tokens that nobody signed (``alg: none``), for
    the subject they name. ``require_client_cert``: no connection without a certificate of the cluster's authority.
    """

    users: Mapping[str, str] = field(default_factory=dict)
    authorize: bool = False
    require_client_cert: bool = False
    oauthbearer: bool = False

    @property
    def mechanisms(self) -> tuple[str, ...]:
        return (("PLAIN", *SCRAM) if self.users else ()) + (("OAUTHBEARER",) if self.oauthbearer else ())

    @property
    def protocol(self) -> str:
        return "SASL_SSL" if self.mechanisms else "SSL"

    def scram_records(self) -> list[str]:
        """Arguments by which formatting a broker's folder makes the users known; PLAIN has them in its settings."""
        return [f"--add-scram={mechanism}=[name={name},password={password}]" for name, password in self.users.items() for mechanism in SCRAM]

    def broker_settings(self, folder: Path) -> dict[str, str]:
        """Settings that make it so; the certificates must be in ``folder``."""
        listener = {
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": f"{folder}/broker.pem",
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": f"{folder}/ca.pem",
            "ssl.client.auth": "required" if self.require_client_cert else "none",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/,DEFAULT",
            **self._login_settings(),
        }
        acls = {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",  # whoever comes by the INTERNAL listener: brokers, and tests as administrators
        }
        return {f"listener.name.client.{name}": value for name, value in listener.items()} | (acls if self.authorize else {})

    def _login_settings(self) -> dict[str, str]:
        if not self.mechanisms:
            return {}
        arguments = {"PLAIN": " ".join(f'user_{name}="{password}"' for name, password in self.users.items())}
        logins = {
            f"{mechanism.lower()}.sasl.jaas.config": f"org.apache.kafka.common.security.{_MODULES[mechanism]} required {arguments.get(mechanism, '')};"
            for mechanism in self.mechanisms
        }
        handler = {"oauthbearer.sasl.server.callback.handler.class": _TRUSTING} if self.oauthbearer else {}
        return {"sasl.enabled.mechanisms": ",".join(self.mechanisms), **logins, **handler}


def write_certificates(folder: Path) -> None:
    """``ca.pem`` for clients; ``broker.pem`` and ``client.pem``: each a key, then its certificate, both of that authority."""
    import trustme
    from cryptography.hazmat.primitives import serialization

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    pkcs8 = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())  # all that Kafka reads
    (folder / "broker.pem").write_bytes(pkcs8 + b"".join(part.bytes() for part in issued.cert_chain_pems))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    client = authority.issue_cert(f"{CERTIFIED_CLIENT}.test", common_name=CERTIFIED_CLIENT)
    client.private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
