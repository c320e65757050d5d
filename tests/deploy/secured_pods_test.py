"""Overlays with certificates and tokens as processes: members are admitted, strangers are not."""

import pathlib
import urllib.request

import grpc
from switchyard.v1 import admin_pb2 as admin
from switchyard.v1 import admin_pb2_grpc, generation_pb2_grpc

import manifests
import testing
from certificates import Authority, credentials, read
from pods import WORKERS, Client, PodsTestCase
from server import LAYERS, request


class Secrets:
    """The secrets that the manifests name, as docs/operations.md makes them."""

    def __init__(self, folder):
        self.clients, self.group = Authority(folder, "clients"), Authority(folder, "group")
        self.api_token, self.admin_token = "a" * 64, "b" * 64

    def make(self, addresses):
        names = "DNS:switchyard,DNS:switchyard.switchyard.svc,DNS:switchyard-admin.switchyard.svc"
        # Members check each other's names; the test puts addresses in place of the pods' names.
        members = ",".join(["DNS:*.switchyard-worker.switchyard.svc"] + [f"IP:{ip}" for ip in addresses])

        def files(authority, identity):
            cert, key = identity
            return {"tls.crt": read(cert), "tls.key": read(key), "ca.crt": read(authority.cert)}

        return {
            "switchyard-tls": files(self.clients, self.clients.issue("server", names=names)),
            "switchyard-group-tls": files(self.group, self.group.issue("member", names=members)),
            "switchyard-tokens": {"api-tokens": self.api_token.encode(), "admin-tokens": self.admin_token.encode()},
            "switchyard-group-token": {"token": b"c" * 64},
        }

    def channel(self, address, name, token):
        """As a client of the service `name` who brings a certificate and a token."""
        tls = credentials(self.clients.cert, self.clients.issue("client"))
        if token:
            tls = grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(token))
        return grpc.secure_channel(address, tls, [("grpc.ssl_target_name_override", name)])

    def client(self, cluster):
        return Client(cluster, lambda address: self.channel(address, "switchyard.switchyard.svc", self.api_token),
                      lambda address: self.channel(address, "switchyard-admin.switchyard.svc", self.admin_token))


class SecuredPodsTest(PodsTestCase):
    def test_the_secured_demo_admits_its_own_alone(self):
        secrets = Secrets(self.folder.name)
        cluster = self.start("cpu-demo-secured", secrets=secrets.make)
        cluster.wait_until_ready()
        with secrets.client(cluster) as client:
            wanted = client.generate()
            client.set_default("fast")
            self.assertEqual(client.generate()[1:], (["gdn"] * LAYERS, 2))
        [address] = cluster.endpoints("switchyard")
        [operators] = cluster.endpoints("switchyard-admin")
        info = admin.GetServerInfoRequest()
        # The wrong token, none, a client's for an operator; no certificate; and a stranger at a worker.
        for channel, call, code in [
                (secrets.channel(address, "switchyard", "d" * 64), None, grpc.StatusCode.UNAUTHENTICATED),
                (secrets.channel(address, "switchyard", None), None, grpc.StatusCode.UNAUTHENTICATED),
                (secrets.channel(operators, "switchyard-admin.switchyard.svc", secrets.api_token), info, grpc.StatusCode.UNAUTHENTICATED),
                (grpc.insecure_channel(address), None, grpc.StatusCode.UNAVAILABLE),
                (secrets.channel(f"{cluster.pods[WORKERS[0]].ip}:9000", f"{WORKERS[0]}.switchyard-worker.switchyard.svc",
                                 secrets.api_token), info, grpc.StatusCode.UNAVAILABLE)]:
            with channel, self.assertRaises(grpc.RpcError) as raised:
                if call is None:
                    for _ in generation_pb2_grpc.GenerationServiceStub(channel).Generate(request("She", max_tokens=1), timeout=20):
                        pass
                else:
                    admin_pb2_grpc.AdminServiceStub(channel).GetServerInfo(call, timeout=20)
            self.assertEqual(raised.exception.code(), code, raised.exception.details())
        self.lose(cluster, WORKERS[0])
        with secrets.client(cluster) as client:
            self.assertEqual(client.generate(), wanted)

    def test_a_group_in_one_pod(self):
        secrets = Secrets(self.folder.name)
        model = pathlib.Path(self.folder.name) / "claim"
        model.mkdir()
        (model / "model").symlink_to(pathlib.Path("tests/testdata/apriel2-tiny").resolve())
        cluster = self.start("gpu-single-node", secrets=secrets.make, claims={"switchyard-model": model},
                             env={"DEVICE": "cpu"})  # there is no GPU here
        cluster.wait_until_ready()
        with secrets.client(cluster) as client:
            self.assertEqual(client.generate()[1:], (["attention"] * LAYERS, 1))
            ranks = client.admin.GetServerInfo(admin.GetServerInfoRequest(), timeout=60).ranks
            self.assertEqual(len(ranks), 2)
            self.assertEqual(client.set_default("all-kda").epoch, 2)
        # What the autoscaler asks for is among what the pod monitor scrapes.
        monitor = manifests.find(cluster.objects, "PodMonitor", "switchyard")["spec"]["podMetricsEndpoints"][0]
        scaler = manifests.find(cluster.objects, "HorizontalPodAutoscaler", "switchyard")["spec"]["metrics"][0]["pods"]
        pod = cluster.pods["switchyard-0"]
        [port] = [p["containerPort"] for p in pod.spec["containers"][0]["ports"] if p["name"] == monitor["port"]]
        with urllib.request.urlopen(f"http://{pod.ip}:{port}{monitor['path']}", timeout=20) as answer:
            self.assertRegex(answer.read().decode(), rf"(?m)^{scaler['metric']['name']}(\{{.*\}})? 0$")
        self.assertEqual(pod.delete(), [0])


if __name__ == "__main__":
    testing.main()
