"""Certificates for a test, made with the openssl command."""

import os
import subprocess

import grpc


def _openssl(*arguments):
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {' '.join(arguments)}: {done.stderr}")


class Authority:
    """A certificate authority in a folder of its own."""

    def __init__(self, folder, name):
        self.folder, self.name = os.path.join(folder, name), name
        os.makedirs(self.folder)
        self.cert, self._key = self._path("ca.pem"), self._path("ca.key")
        _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.cert)

    def _path(self, name):
        return os.path.join(self.folder, name)

    def issue(self, name, days=2, names="DNS:localhost,IP:127.0.0.1"):
        """(certificate, key) paths for these subject names; days=-1 makes one that has expired."""
        cert, key, request, extensions = (self._path(f"{name}.{end}") for end in ["pem", "key", "csr", "ext"])
        with open(extensions, "w", encoding="ascii") as file:
            file.write(f"subjectAltName={names}\n")
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
                 "-keyout", key, "-out", request)
        _openssl("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key, "-CAcreateserial",
                 "-days", str(days), "-extfile", extensions, "-out", cert)
        return cert, key


def read(path):
    with open(path, "rb") as file:
        return file.read()


def credentials(ca, identity=None):
    """grpcio's channel credentials: trusts the authority's certificate file, shows (certificate, key) if given."""
    cert, key = (read(path) for path in identity) if identity else (None, None)
    return grpc.ssl_channel_credentials(read(ca), key, cert)
