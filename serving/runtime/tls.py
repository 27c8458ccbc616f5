"""TLS of the server: its certificate, and the CA of client certificates, read again when their files change."""

import logging
from typing import Any

import grpc

from tidegate.runtime.lifecycle import StartFailed
from tidegate.runtime.tls_files import Certificates, InvalidCertificate, TlsFiles

log = logging.getLogger("tidegate.tls")


class TlsCredentials:
    """The credentials of a server. Each handshake uses the files as they are then.

    While changed files do not fit together, such as in the middle of a renewal, the last good ones stay in use.

    Raises StartFailed when the files cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        try:
            self._stamp = files.stamp()
            initial = _configuration(files.read())
        except OSError as error:
            raise StartFailed(f"{error.filename}: {error.strerror}") from error
        except InvalidCertificate as error:
            raise StartFailed(str(error)) from error
        self.credentials = grpc.dynamic_ssl_server_credentials(
            initial, self._changed, require_client_authentication=files.client_ca is not None
        )

    def _changed(self) -> Any:
        """The new certificates, None when there are none. gRPC calls it before each handshake, in a thread of its own."""
        try:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return None
            self._stamp = stamp  # a bad file is reported once
            changed = _configuration(self._files.read())
        except (OSError, InvalidCertificate) as error:
            log.warning("the certificate is not read again, and the one before stays in use: %s", error)
            return None
        log.info("certificates read again: %s", self._files)
        return changed


def _configuration(certificates: Certificates) -> Any:
    pairs = [(certificates.key, certificates.cert)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=certificates.client_ca)
