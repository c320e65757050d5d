"""Runs the pods of rendered manifests as processes of this machine, the way a kubelet would run them.

Taken from the manifests: command, arguments, environment (with $(NAME), resourceFieldRef, fieldRef), ports, probes (native
grpc), lifecycle hooks, grace periods, restart policy, config maps, secrets, and which pods a service selects.

Replaced, because processes share what containers have of their own:
  network   every pod has a loopback address of its own; 0.0.0.0 in an argument is that address, and a pod's DNS name
            (POD.SERVICE.NAMESPACE.svc) the address of that pod
  files     a mount path, or a path that the image contains, is a folder of this machine
  time      probe periods, the back-off of restarts and the sleep of a preStop hook are `hurry` times shorter; deadlines and
            grace periods are not
"""

import os
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time

import grpc

from manifests import expand, selects

SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse{status: SERVING}, serialised


def probe(address, service, seconds):
    """The kubelet's grpc probe: plaintext, and SERVING within the deadline."""
    request = b"\x0a" + bytes([len(service)]) + service.encode() if service else b""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            return check(request, timeout=seconds) == SERVING
        except grpc.RpcError:
            return False


def claim_network():
    """A prefix of loopback addresses that no other test of this machine has now, and the socket that keeps it."""
    while True:
        network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        claim = socket.socket()
        try:
            claim.bind((f"{network}.254", 9999))
            return network, claim
        except OSError:  # taken
            claim.close()


class Probe:
    """One probe of a container: when it is due, and how often in a row it said what."""

    def __init__(self, spec, hurry):
        self.grpc = spec["grpc"]
        self.period = spec.get("periodSeconds", 10) / hurry
        self.timeout = spec.get("timeoutSeconds", 1)
        self.failures_allowed = spec.get("failureThreshold", 3)
        self.reset()

    def reset(self):
        self.passed, self.failures, self.due = False, 0, 0.0

    def run(self, ip):
        """True once it fails too often in a row."""
        self.due = time.monotonic() + self.period
        if probe(f"{ip}:{self.grpc['port']}", self.grpc.get("service", ""), self.timeout):
            self.passed, self.failures = True, 0
            return False
        self.failures += 1
        if self.failures >= self.failures_allowed:
            self.passed = False
            return True
        return False


class Container:
    """A container: started again whenever it ends, and probed, by a thread of its own."""

    def __init__(self, pod, spec, cluster):
        self.name, self.pod, self.spec, self.cluster = f"{pod.name}/{spec['name']}", pod, spec, cluster
        self.restarts, self.exit_codes, self.ready, self.started = 0, [], False, False
        self.log = cluster.root / f"{pod.name}-{spec['name']}.log"
        self._probes = {kind: Probe(spec[f"{kind}Probe"], cluster.hurry) for kind in ("startup", "readiness", "liveness")}
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._back_off = 10 / cluster.hurry
        self._start()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def environment(self):
        env = {}
        for entry in self.spec.get("env", []):
            if "value" in entry:
                value = expand(entry["value"], env)
            elif "resourceFieldRef" in entry["valueFrom"]:
                kind, _, resource = entry["valueFrom"]["resourceFieldRef"]["resource"].partition(".")
                value = self.spec["resources"][kind][resource]
            else:
                value = {"metadata.name": self.pod.name, "metadata.namespace": self.cluster.namespace}[entry["valueFrom"]["fieldRef"]["fieldPath"]]
            env[entry["name"]] = self.cluster.env.get(entry["name"], value)
        return env

    def command(self):
        env = self.environment()
        words = [expand(word, env) for word in self.spec["command"] + self.spec["args"]]
        return [self.cluster.binaries.get(words[0], words[0])] + [self.pod.localise(word, self.spec) for word in words[1:]]

    def _start(self):
        env = {name: self.pod.localise(value, self.spec) for name, value in self.environment().items()}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self.command(), env={"PATH": os.environ["PATH"], **env}, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log)
        self.started = self.ready = False
        for each in self._probes.values():
            each.reset()

    def _watch(self):
        while not self._stopping.is_set():
            code = self.process.poll()
            if code is not None:
                self.ready = False
                self.exit_codes.append(code)
                # The first restart is at once, the next ones after 10, 20, 40 s ...
                if self.restarts > 0:
                    self._wake.wait(self._back_off)
                    self._back_off = min(2 * self._back_off, 300)
                if self._stopping.is_set():
                    return
                self.restarts += 1
                self._start()
            self._probe()
            self._wake.wait(0.02)

    def _probe(self):
        now = time.monotonic()
        if not self.started:
            startup = self._probes["startup"]
            if now >= startup.due and startup.run(self.pod.ip):
                self.process.kill()
            self.started = startup.passed
            return
        readiness, liveness = self._probes["readiness"], self._probes["liveness"]
        if now >= readiness.due:
            readiness.run(self.pod.ip)
            self.ready = readiness.passed
        if now >= liveness.due and liveness.run(self.pod.ip):
            self.process.kill()

    def stop(self, graceful):
        """Ends it for good, as the deletion of its pod does; returns the exit code."""
        self._stopping.set()
        self._wake.set()
        self._thread.join()
        self.ready = False
        if graceful and self.process.poll() is None:
            deadline = time.monotonic() + self.pod.spec["terminationGracePeriodSeconds"]
            command = self.spec["lifecycle"]["preStop"]["exec"]["command"]
            if command[0] == "sleep":
                command = ["sleep", str(int(command[1]) / self.cluster.hurry)]
            hook = subprocess.Popen(command)
            while hook.poll() is None and self.process.poll() is None:  # the hook ends with its container
                time.sleep(0.02)
            if hook.poll() is None:
                hook.kill()
            hook.wait()
            self.process.send_signal(signal.SIGTERM)
            try:
                return self.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
        self.process.kill()
        return self.process.wait()


class Pod:
    def __init__(self, name, template, cluster, ip):
        self.name, self.spec, self.ip, self.cluster = name, template["spec"], ip, cluster
        self.labels = template["metadata"]["labels"]
        self.volumes = {volume["name"]: cluster.volume(self, volume) for volume in self.spec["volumes"]}
        self.containers = []

    def start(self):
        self.containers = [Container(self, spec, self.cluster) for spec in self.spec["containers"]]

    def localise(self, text, container):
        """What a pod has of its own, on this machine."""
        text = text.replace("0.0.0.0", self.ip)
        for name, ip in self.cluster.names().items():
            text = text.replace(name + ":", ip + ":")
        places = {mount["mountPath"]: self.volumes[mount["name"]] for mount in container["volumeMounts"]}
        places.update(self.cluster.image_files)
        for path, place in sorted(places.items(), reverse=True):  # longer paths first
            head, found, tail = text.partition(path)
            if found and head[-1:] in ("", "=") and tail[:1] in ("", "/"):
                return head + str(place) + tail
        return text

    @property
    def ready(self):
        return bool(self.containers) and all(container.ready for container in self.containers)

    @property
    def restarts(self):
        return sum(container.restarts for container in self.containers)

    def delete(self, graceful=True):
        """Deletes it; returns the containers' exit codes."""
        codes = []
        threads = [threading.Thread(target=lambda c=c: codes.append(c.stop(graceful))) for c in self.containers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.containers = []
        return codes


class Cluster:
    """All pods of StatefulSets and Deployments; a context manager that ends what it started.

    binaries: command -> path here; image_files: path in the image -> path here; secrets: a function of the pods' addresses
    that returns name -> {key: bytes}; claims: name -> folder here; env: what to put in place of the manifests' values.
    """

    def __init__(self, objects, root, binaries, image_files, secrets=None, claims=None, env=None, hurry=10):
        self.objects, self.root, self.hurry = objects, pathlib.Path(root), hurry
        self.binaries, self.image_files = binaries, image_files
        self.claims, self.env = claims or {}, env or {}
        self.namespace = next(item["metadata"]["namespace"] for item in objects if "namespace" in item["metadata"])
        self.config_maps = {item["metadata"]["name"]: dict(item["data"]) for item in objects if item["kind"] == "ConfigMap"}
        self._published = []  # (config map's name, folder, version)
        self._names = {}
        network, self._claim = claim_network()
        planned = []  # (pod's name, template, address)
        for item in objects:
            if item["kind"] in ("StatefulSet", "Deployment"):
                for ordinal in range(item["spec"].get("replicas", 1)):
                    name, ip = f"{item['metadata']['name']}-{ordinal}", f"{network}.{len(planned) + 1}"
                    planned.append((name, item["spec"]["template"], ip))
                    if item["kind"] == "StatefulSet":
                        self._names[f"{name}.{item['spec']['serviceName']}.{self.namespace}.svc"] = ip
        self.secrets = secrets([ip for _, _, ip in planned]) if secrets else {}
        self.pods = {name: Pod(name, template, self, ip) for name, template, ip in planned}

    def __enter__(self):
        for pod in self.pods.values():
            pod.start()
        return self

    def __exit__(self, *unused):
        for pod in self.pods.values():
            pod.delete(graceful=False)
        self._claim.close()

    def names(self):
        """DNS: a pod's name under its governing service -> address."""
        return self._names

    def endpoints(self, service_name):
        """address:port of the pods behind a service's first port: the ready ones, unless the service says otherwise."""
        [service] = [i for i in self.objects if i["kind"] == "Service" and i["metadata"]["name"] == service_name]
        target = service["spec"]["ports"][0]["targetPort"]
        found = []
        for pod in self.pods.values():
            if selects(service["spec"]["selector"], pod.labels) and (
                    pod.ready or service["spec"].get("publishNotReadyAddresses")):
                found += [f"{pod.ip}:{port['containerPort']}" for container in pod.spec["containers"]
                          for port in container["ports"] if port["name"] == target]
        return found

    def volume(self, pod, volume):
        folder = self.root / pod.name / volume["name"]
        if "persistentVolumeClaim" in volume:
            return self.claims[volume["persistentVolumeClaim"]["claimName"]]
        folder.mkdir(parents=True)
        if "configMap" in volume:
            name = volume["configMap"]["name"]
            self._published.append([name, folder, 0])
            self._publish(self._published[-1])
        elif "secret" in volume:
            for key, content in self.secrets[volume["secret"]["secretName"]].items():
                (folder / key).write_bytes(content)
        return folder

    def _publish(self, published):
        """As the kubelet: KEY -> ..data/KEY, and ..data -> a folder of this version, swapped by a rename."""
        name, folder, version = published
        (folder / f"..{version}").mkdir()
        for key, content in self.config_maps[name].items():
            (folder / f"..{version}" / key).write_text(content, encoding="utf-8")
            if not (folder / key).is_symlink():
                (folder / key).symlink_to(f"..data/{key}")
        (folder / "..data_tmp").symlink_to(f"..{version}")
        (folder / "..data_tmp").rename(folder / "..data")

    def update_config_map(self, name, data):
        self.config_maps[name] = data
        for published in self._published:
            if published[0] == name:
                published[2] += 1
                self._publish(published)

    def wait_for(self, what, predicate, seconds=120):
        """Waits until the predicate holds; tells every container's state and last words if it does not."""
        deadline = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}\n{self.describe()}")
            time.sleep(0.02)

    def wait_until_ready(self, seconds=120):
        self.wait_for("every pod ready", lambda: all(pod.ready for pod in self.pods.values()), seconds)

    def describe(self):
        lines = []
        for pod in self.pods.values():
            for container in pod.containers:
                lines.append(f"{container.name}: ready {container.ready}, restarts {container.restarts}, "
                             f"exit codes {container.exit_codes}, {' '.join(map(str, container.command()))}")
                lines += ["    " + line for line in
                          container.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]]
        return "\n".join(lines)
