"""The manifests of deploy/kubernetes: rendered, valid for several Kubernetes versions, and what production asks of them."""

import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

import yaml

import kustomize
import manifests
import schemas
import testing
from manifests import expand, find, flag, pod_templates, seconds, selects

BINARY = "cli/switchyard"


def every_overlay():
    for overlay in manifests.overlays():
        yield overlay, manifests.load(overlay)


def every_container():
    """(overlay, name, template, container) of all overlays."""
    for overlay, objects in every_overlay():
        for name, template in pod_templates(objects):
            for container in template["spec"]["containers"]:
                yield overlay, f"{overlay}: {name}/{container['name']}", template, container


def env_of(container):
    """What the kubelet makes of a container's env, with stand-ins for the fields that it would fill in."""
    env = {}
    for entry in container.get("env", []):
        env[entry["name"]] = expand(entry["value"], env) if "value" in entry else "1"
    return env


def commands():
    """(where, sub-command, arguments as the binary gets them) of every container that runs the binary."""
    for _, where, _, container in every_container():
        if container["command"] == ["switchyard"]:
            args = [expand(arg, env_of(container)) for arg in container["args"]]
            yield where, args[0], args[1:]


class RenderingTest(unittest.TestCase):
    def test_the_rendering_is_current(self):
        rendered = {path.stem: path.read_text(encoding="utf-8") for path in manifests.RENDERED.glob("*.yaml")}
        self.assertEqual(sorted(rendered), manifests.overlays())
        for overlay, text in rendered.items():
            self.assertTrue(text.startswith(manifests.header()),
                            f"{overlay}: deploy/kubernetes has changed since; run tests/deploy/render")

    def test_kustomize_says_the_same(self):
        # The digest covers the inputs; where kustomize is at hand, the output is compared too.
        if kustomize.command() is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "kubernetes"
            shutil.copytree(manifests.ROOT, copy)  # kustomize follows no links out of its folder
            for overlay in manifests.overlays():
                again = kustomize.build(copy / "overlays" / overlay)
                self.assertEqual(list(yaml.safe_load_all(again)), manifests.load(overlay))

    def test_all_shapes_are_there(self):
        kinds = {item["kind"] for _, objects in every_overlay() for item in objects}
        self.assertLessEqual({"StatefulSet", "Deployment", "LeaderWorkerSet", "HorizontalPodAutoscaler", "PodMonitor",
                              "PodDisruptionBudget", "NetworkPolicy", "PersistentVolumeClaim", "ConfigMap"}, kinds)


class SchemaTest(unittest.TestCase):
    def test_every_overlay_is_valid_for_every_version(self):
        self.assertGreaterEqual(len(schemas.versions()), 4)
        for version in schemas.versions():
            validator = schemas.Schemas(version)
            for overlay, objects in every_overlay():
                self.assertGreater(len(objects), 5, overlay)
                for item in objects:
                    self.assertEqual(validator.errors(item), [], f"{overlay} on Kubernetes {version}")

    def test_the_schemas_find_mistakes(self):
        def with_change(kind, name, change):
            item = find(manifests.load("gpu-multi-node" if kind == "LeaderWorkerSet" else "cpu-demo-secured"), kind, name)
            change(item)
            return item

        def pod(item):
            return item["spec"]["template"]["spec"]

        mistakes = [
            ("StatefulSet", "switchyard-worker", lambda i: i["spec"].update(replica=2)),
            ("StatefulSet", "switchyard-worker", lambda i: i["spec"].update(replicas="two")),
            ("StatefulSet", "switchyard-worker", lambda i: pod(i)["containers"][0].pop("name")),
            ("StatefulSet", "switchyard-worker",
             lambda i: pod(i)["containers"][0]["livenessProbe"]["grpc"].update(port="worker")),
            ("StatefulSet", "switchyard-worker", lambda i: pod(i)["volumes"][0].update(emptydir={})),
            ("Service", "switchyard", lambda i: i["spec"]["ports"][0].pop("port")),
            ("PodMonitor", "switchyard", lambda i: i["spec"]["podMetricsEndpoints"][0].update(interval="often")),
            ("LeaderWorkerSet", "switchyard-group",
             lambda i: i["spec"]["leaderWorkerTemplate"].update(restartPolicy="Sometimes")),
            ("LeaderWorkerSet", "switchyard-group",
             lambda i: i["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"].update(container=[])),
        ]
        for version in schemas.versions():
            validator = schemas.Schemas(version)
            for kind, name, change in mistakes:
                self.assertNotEqual(validator.errors(with_change(kind, name, change)), [], f"{kind} {version}")
            self.assertNotEqual(validator.errors({"apiVersion": "v1", "kind": "Unheard"}), [])


class CommandTest(unittest.TestCase):
    def test_the_binary_knows_every_flag(self):
        helps = {}
        for where, command, args in commands():
            if command not in helps:
                helps[command] = subprocess.run([BINARY, command, "--help"], capture_output=True, text=True, check=True).stdout
            for arg in args:
                self.assertRegex(arg, r"^--[a-z-]+=.+$", where)
                name = arg.partition("=")[0]
                self.assertRegex(helps[command], rf"(?m)^\s*{name}\b", f"{where}: `switchyard {command}` has no {name}")
        self.assertEqual(set(helps), {"coordinator", "worker", "serve"})

    def test_the_group_names_all_its_workers(self):
        for overlay, objects in every_overlay():
            workers = [item for item in objects
                       if item["kind"] == "StatefulSet" and item["metadata"]["name"].endswith("-worker")]
            for item in workers:
                name, service = item["metadata"]["name"], item["spec"]["serviceName"]
                headless = find(objects, "Service", service)
                self.assertEqual(headless["spec"]["clusterIP"], "None", overlay)
                self.assertTrue(headless["spec"]["publishNotReadyAddresses"], overlay)
                port = flag(item["spec"]["template"]["spec"]["containers"][0]["args"], "port")
                coordinator = find(objects, "StatefulSet", "switchyard-coordinator")["spec"]["template"]["spec"]["containers"][0]
                self.assertEqual(env_of(coordinator)["WORKERS"].split(","),
                                 [f"{name}-{rank}.{service}.1.svc:{port}" for rank in range(item["spec"]["replicas"])], overlay)

    def test_the_group_over_nodes_names_all_its_workers(self):
        for overlay, objects in every_overlay():
            for item in objects:
                if item["kind"] != "LeaderWorkerSet":
                    continue
                template = item["spec"]["leaderWorkerTemplate"]
                self.assertEqual(template["restartPolicy"], "RecreateGroupOnPodRestart")
                coordinator, worker = template["leaderTemplate"]["spec"]["containers"]
                gpus = int(env_of(worker)["GPUS_PER_NODE"])
                for container in [worker] + template["workerTemplate"]["spec"]["containers"]:
                    self.assertEqual(container["resources"]["limits"]["nvidia.com/gpu"], str(gpus), overlay)
                    self.assertEqual(container["args"], worker["args"], overlay)
                pods = ["leader"] + [f"leader-{index}" for index in range(1, template["size"])]
                env = {"POD_NAME": "leader", "NAMESPACE": "here"}
                workers = [e["value"] for e in coordinator["env"] if e["name"] == "WORKERS"]
                self.assertEqual(expand(workers[0], env).split(","),
                                 [f"{pod}.{item['metadata']['name']}.here.svc:{9000 + gpu}" for pod in pods for gpu in range(gpus)])

    def test_the_workers_script_ends_with_its_first_worker(self):
        item = find(manifests.load("gpu-multi-node"), "LeaderWorkerSet", "switchyard-group")
        worker = item["spec"]["leaderWorkerTemplate"]["workerTemplate"]["spec"]["containers"][0]
        self.assertEqual(worker["command"], ["bash", "-c"])
        # A stand-in for the binary: the worker of GPU 2 ends, the others would stay.
        stand_in = """switchyard() { case "$*" in *--device=cuda:2*) echo "$*" ;; *) exec sleep 60 >/dev/null ;; esac; }\n"""
        script = subprocess.Popen(["bash", "-c", stand_in + worker["args"][0]] + worker["args"][1:], env={
            "GPUS_PER_NODE": "4", "PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            self.assertEqual(script.wait(60), 1)
            line = script.stdout.readline()
        finally:
            os.killpg(script.pid, signal.SIGKILL)  # what the end of a container's first process does
            script.stdout.close()
        self.assertIn("worker --listen=0.0.0.0 --port=9002 --health-port=9102 --device=cuda:2", line)
        self.assertEqual([arg for arg in worker["args"][2:] if not arg.startswith("--")], [])

    def test_variables_are_defined_where_they_are_used(self):
        for _, where, _, container in every_container():
            if container["command"] != ["switchyard"]:
                continue
            for arg in container["args"] + list(env_of(container).values()):
                self.assertNotIn("$(", expand(arg, env_of(container)), where)


class LifecycleTest(unittest.TestCase):
    def test_the_grace_period_outlasts_prestop_and_drain(self):
        seen = 0
        for _, where, template, container in every_container():
            grace = template["spec"]["terminationGracePeriodSeconds"]
            hook = container["lifecycle"]["preStop"]["exec"]["command"]
            self.assertEqual(hook[0], "sleep", where)
            drain = flag(container["args"], "drain-timeout")
            if drain is not None:
                seen += 1
                self.assertGreaterEqual(grace, int(hook[1]) + seconds(drain) + 10, where)
            else:
                self.assertGreater(grace, int(hook[1]), where)
        self.assertGreaterEqual(seen, 5)

    def test_workers_outlast_the_coordinators_drain(self):
        for overlay, objects in every_overlay():
            containers = [c for _, t in pod_templates(objects) for c in t["spec"]["containers"]]
            drains = [int(c["lifecycle"]["preStop"]["exec"]["command"][1]) + seconds(flag(c["args"], "drain-timeout"))
                      for c in containers if flag(c["args"], "drain-timeout")]
            for container in containers:
                if container["name"] == "worker":
                    hook = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
                    self.assertGreaterEqual(hook, max(drains) + 10, overlay)

    def test_probes_are_native_grpc_on_a_port_of_the_container(self):
        for _, where, _, container in every_container():
            ports = [port["containerPort"] for port in container["ports"]]
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                self.assertIn(container[probe]["grpc"]["port"], ports, where)
            if container["name"] != "worker":
                port = int(flag(container["args"], "health-port"))
                # Readiness is the service's, liveness the process's: a drain must not look like a death.
                self.assertEqual(container["readinessProbe"]["grpc"],
                                 {"port": port, "service": "switchyard.v1.GenerationService"}, where)
                self.assertEqual(container["livenessProbe"]["grpc"], {"port": port}, where)
                startup = container["startupProbe"]
                self.assertGreaterEqual(startup["periodSeconds"] * startup["failureThreshold"],
                                        seconds(flag(container["args"], "connect-timeout", "30s")) + 600, where)

    def test_named_ports_are_the_flags(self):
        for _, where, _, container in every_container():
            for port, name in [("grpc", "port"), ("admin", "admin-port"), ("health", "health-port"), ("metrics", "metrics-port"),
                               ("worker", "port")]:
                for declared in container["ports"]:
                    if declared["name"] == port and flag(container["args"], name):
                        self.assertEqual(declared["containerPort"], int(flag(container["args"], name)), f"{where} {port}")


class SecurityTest(unittest.TestCase):
    def test_pods_are_restricted(self):
        for overlay, objects in every_overlay():
            for name, template in pod_templates(objects):
                spec, where = template["spec"], f"{overlay}: {name}"
                self.assertIs(spec["automountServiceAccountToken"], False, where)
                self.assertIs(find(objects, "ServiceAccount", spec["serviceAccountName"])["automountServiceAccountToken"], False)
                self.assertIs(spec["enableServiceLinks"], False, where)
                self.assertIs(spec["securityContext"]["runAsNonRoot"], True, where)
                self.assertGreater(spec["securityContext"]["runAsUser"], 0, where)
                self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"}, where)
                for key in ("hostNetwork", "hostPID", "hostIPC"):
                    self.assertFalse(spec.get(key), where)
                for container in spec["containers"]:
                    self.assertEqual(container["securityContext"], {
                        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]}}, where)
                    self.assertIn("memory", container["resources"]["limits"], where)
                    self.assertIn("cpu", container["resources"]["requests"], where)

    def test_volumes_are_harmless_and_all_there(self):
        for overlay, objects in every_overlay():
            for name, template in pod_templates(objects):
                volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
                for volume in volumes.values():
                    where = f"{overlay}: {name}/{volume['name']}"
                    kind = next(key for key in volume if key != "name")
                    self.assertIn(kind, ("configMap", "emptyDir", "persistentVolumeClaim", "secret"), where)
                    if kind == "configMap":
                        find(objects, "ConfigMap", volume["configMap"]["name"])
                    if kind == "persistentVolumeClaim":
                        find(objects, "PersistentVolumeClaim", volume[kind]["claimName"])
                    if kind == "emptyDir":
                        self.assertIn("sizeLimit", volume["emptyDir"], where)
                mounted = set()
                for container in template["spec"]["containers"]:
                    for mount in container["volumeMounts"]:
                        self.assertIn(mount["name"], volumes, f"{overlay}: {name}")
                        self.assertNotIn("subPath", mount, f"{overlay}: {name}: a subPath is never updated")
                        mounted.add(mount["name"])
                        if mount["name"] not in ("tmp", "shm"):
                            self.assertIs(mount["readOnly"], True, f"{overlay}: {name}")
                    if container["name"] != "coordinator":
                        shm = [m["name"] for m in container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
                        self.assertEqual(volumes[shm[0]]["emptyDir"]["medium"], "Memory", f"{overlay}: {name}")
                self.assertEqual(mounted, set(volumes), f"{overlay}: {name}")

    def test_files_in_the_arguments_are_mounted(self):
        for _, where, template, container in every_container():
            paths = [m["mountPath"] for m in container["volumeMounts"]]
            for arg in container["args"]:
                value = arg.partition("=")[2]
                if value.startswith("/etc/"):
                    self.assertTrue(any(value.startswith(path + "/") for path in paths), f"{where}: {arg}")

    def test_workers_see_no_secret_of_clients(self):
        for _, where, template, container in every_container():
            if container["name"] != "worker":
                continue
            secrets = {v["name"]: v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v}
            for mount in container["volumeMounts"]:
                self.assertNotIn(secrets.get(mount["name"]), ("switchyard-tls", "switchyard-tokens"), where)

    def test_every_production_overlay_has_the_network_closed(self):
        for overlay, objects in every_overlay():
            if overlay == "cpu-demo":
                continue
            policies = [item for item in objects if item["kind"] == "NetworkPolicy"]
            for name, template in pod_templates(objects):
                labels = template["metadata"]["labels"]
                mine = [p["spec"] for p in policies if selects(p["spec"]["podSelector"], labels)]
                self.assertEqual(len(mine), 1, f"{overlay}: {name}")
                self.assertEqual(mine[0]["policyTypes"], ["Ingress", "Egress"])
                members = [t["metadata"]["labels"] for _, t in pod_templates(objects)]
                for rule in mine[0]["ingress"]:
                    ports = {port["port"] for port in rule.get("ports", [])}
                    if not ports:  # all ports: the group alone
                        for peer in rule["from"]:
                            self.assertEqual(list(peer), ["podSelector"], f"{overlay}: {name}")
                            self.assertEqual(peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"], "switchyard")
                    self.assertLessEqual(ports, {8000, 8001, 8003}, f"{overlay}: {name}")
                if labels["app.kubernetes.io/component"] == "worker":
                    self.assertTrue(all("ports" not in rule for rule in mine[0]["ingress"]), f"{overlay}: {name}")
                runs_workers = any(c["name"] == "worker" for c in template["spec"]["containers"])
                if runs_workers:  # reachable from every member's pod
                    open_to = [peer["podSelector"] for rule in mine[0]["ingress"] if "ports" not in rule for peer in rule["from"]]
                    for member in members:
                        self.assertTrue(any(selects(s, member) for s in open_to), f"{overlay}: {name}")


class WiringTest(unittest.TestCase):
    def test_services_reach_ports_of_pods(self):
        for overlay, objects in every_overlay():
            services = [item for item in objects if item["kind"] == "Service"]
            self.assertLessEqual({"switchyard", "switchyard-admin"}, {s["metadata"]["name"] for s in services})
            for service in services:
                chosen = [t for _, t in pod_templates(objects) if selects(service["spec"]["selector"], t["metadata"]["labels"])]
                self.assertTrue(chosen, f"{overlay}: {service['metadata']['name']} selects no pod")
                for template in chosen:
                    names = [p["name"] for c in template["spec"]["containers"] for p in c["ports"]]
                    for port in service["spec"]["ports"]:
                        self.assertIn(port["targetPort"], names, f"{overlay}: {service['metadata']['name']}")

    def test_clients_and_operators_have_services_of_their_own(self):
        for overlay, objects in every_overlay():
            ports = {s["metadata"]["name"]: [p["port"] for p in s["spec"]["ports"]] for s in objects if s["kind"] == "Service"}
            self.assertEqual((ports["switchyard"], ports["switchyard-admin"]), ([8000], [8001]), overlay)

    def test_monitors_budgets_and_autoscalers_find_what_they_name(self):
        seen = set()
        for overlay, objects in every_overlay():
            for item in objects:
                spec, templates = item.get("spec", {}), list(pod_templates(objects))
                if item["kind"] == "PodMonitor":
                    chosen = [t for _, t in templates if selects(spec["selector"], t["metadata"]["labels"])]
                    self.assertTrue(chosen)
                    for template in chosen:
                        names = [p["name"] for c in template["spec"]["containers"] for p in c["ports"]]
                        for endpoint in spec["podMetricsEndpoints"]:
                            self.assertIn(endpoint["port"], names, overlay)
                elif item["kind"] == "PodDisruptionBudget":
                    self.assertTrue([t for _, t in templates if selects(spec["selector"], t["metadata"]["labels"])], overlay)
                elif item["kind"] == "HorizontalPodAutoscaler":
                    target = spec["scaleTargetRef"]
                    scaled = find(objects, target["kind"], target["name"])
                    self.assertEqual(scaled["apiVersion"], target["apiVersion"], overlay)
                    # A number of replicas in the manifest would undo the autoscaler's at every apply.
                    self.assertEqual(spec["metrics"][0]["pods"]["metric"]["name"], "switchyard_num_requests_waiting")
                    if target["kind"] == "Deployment":
                        self.assertNotIn("replicas", scaled["spec"], overlay)
                else:
                    continue
                seen.add(item["kind"])
        self.assertEqual(seen, {"PodMonitor", "PodDisruptionBudget", "HorizontalPodAutoscaler"})

    def test_gpu_pods_ask_for_gpus_and_bear_their_nodes(self):
        seen = 0
        for overlay, where, template, container in every_container():
            gpus = container["resources"]["limits"].get("nvidia.com/gpu")
            if gpus is None:
                self.assertFalse(overlay.startswith("gpu-") and container["name"] == "worker", where)
                continue
            seen += 1
            self.assertEqual(container["image"], "switchyard:cuda", where)
            self.assertIn({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
                          template["spec"]["tolerations"], where)
            if container["args"][0] == "serve":
                self.assertEqual(env_of(container)["TENSOR_PARALLEL_SIZE"], gpus, where)
                self.assertTrue(template["spec"]["topologySpreadConstraints"], where)
        self.assertGreaterEqual(seen, 4)


if __name__ == "__main__":
    testing.main()
