"""The files for TLS: read and checked. This file does not import gRPC, so that the settings can name them."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path


class InvalidCertificate(Exception):
    """A file is missing, is not PEM, or the key is not that of the certificate."""


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM: the certificate chain of the server, its key, and the CA of client certificates."""

    cert: bytes
    key: bytes = field(repr=False)
    client_ca: bytes | None = None


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate chain of the server, its key, and the CA of client certificates.

    With `client_ca`, a client needs a certificate that this CA signed.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when a file does. Raises OSError."""
        found = [path.stat() for path in (self.cert, self.key, self.client_ca) if path is not None]
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in found)

    def read(self) -> "Certificates":
        """The content of the files. Raises InvalidCertificate: gRPC itself would only refuse every client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=_no_password)
            if self.client_ca is not None:
                context.load_verify_locations(self.client_ca)
            client_ca = None if self.client_ca is None else self.client_ca.read_bytes()
            return Certificates(self.cert.read_bytes(), self.key.read_bytes(), client_ca)
        except ssl.SSLError as error:
            raise InvalidCertificate(
                f"{self}: {error.reason or error}; expected PEM, and the certificate's own key"
            ) from error
        except OSError as error:
            raise InvalidCertificate(f"{error.filename or self}: {error.strerror}") from error

    def __str__(self) -> str:
        """The paths."""
        return ", ".join(str(path) for path in (self.cert, self.key, self.client_ca) if path is not None)


def _no_password() -> str:
    """Refuses an encrypted key: OpenSSL would ask for the password at the terminal, and gRPC cannot use the key."""
    raise ssl.SSLError(0, "the key is encrypted; remove its password")
