"""Metrics and logs of a server under load, as its operators use them: what dashboard, rules and docs name is there, and
moves; JSON logs let one request be followed by its id."""

import json
import os
import re
import signal
import subprocess
import threading
import unittest
import urllib.error
import urllib.request

import grpc
import yaml
from prometheus_client.parser import text_string_to_metric_families

import testing
from server import LAYERS, Server, admin, request

DASHBOARD = "deploy/dashboards/switchyard.json"
MAKE_DASHBOARD = "deploy/dashboards/make_dashboard"
ALERTS = "deploy/dashboards/alerts.yaml"
DOCS = "docs/metrics.md"

# Of other exporters: Prometheus' own.
FOREIGN = {"up"}
# These say that something is as it was at the start, or belong to a GPU.
CONSTANT = {"switchyard_alive", "switchyard_build_info", "switchyard_cache_capacity_bytes", "switchyard_group_up",
            "switchyard_rank_memory_bytes", "switchyard_rank_up", "process_start_time_seconds"}
GPU_ONLY = {"switchyard_graph_captures_total", "switchyard_graph_replays_total"}

NAME = r"(?:switchyard_|process_)[a-z0-9_]+|\bup\b"


def scrape(server):
    with urllib.request.urlopen(f"http://{server.metrics_target}/metrics", timeout=10) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4"), response.headers
        return Scrape(response.read().decode())


class Scrape:
    def __init__(self, text):
        self.samples = {}  # (name, frozenset of labels) -> value
        self.types, self.labels = {}, {}
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                self.types[name] = kind
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self.samples[(sample.name, frozenset(sample.labels.items()))] = sample.value
                self.labels.setdefault(self.family(sample.name), set()).update(sample.labels)

    def family(self, name):
        """The family of a sample: its name as TYPE says it."""
        if name in self.types:
            return name
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        return base if self.types.get(base) == "histogram" else None

    def select(self, name, matchers=()):
        """The samples that a PromQL selector picks; matchers: (label, = or =~ or != or !~, value)."""
        found = {}
        for (sample, labels), value in self.samples.items():
            labels = dict(labels)
            if sample == name and all(
                    (re.fullmatch(want, labels.get(label, "")) is not None if "~" in how else labels.get(label, "") == want)
                    != how.startswith("!") for label, how, want in matchers):
                found[tuple(sorted(labels.items()))] = value
        return found

    def value(self, name, **labels):
        return sum(self.select(name, [(label, "=", want) for label, want in labels.items()]).values())


def selectors(expression):
    """(name, matchers) of every series that a PromQL expression reads; matchers on dashboard variables are left out."""
    for match in re.finditer(rf"(?<![\w:])({NAME})(?:\{{([^}}]*)\}})?", expression):
        matchers = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', match.group(2) or "")
        yield match.group(1), [m for m in matchers if "$" not in m[2]]


def panel_expressions():
    with open(DASHBOARD, encoding="utf-8") as file:
        dashboard = json.load(file)
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']!r}", target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']!r}", annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']!r}", variable["definition"]


def rules():
    with open(ALERTS, encoding="utf-8") as file:
        return [rule for group in yaml.safe_load(file)["groups"] for rule in group["rules"]]


def rule_expressions():
    for rule in rules():
        yield rule.get("alert") or rule["record"], rule["expr"]


def documented():
    """name -> (type, labels) of the tables in docs/metrics.md."""
    rows = {}
    with open(DOCS, encoding="utf-8") as file:
        for line in file:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) == 4 and re.fullmatch(rf"`({NAME})`", cells[0]):
                rows[cells[0].strip("`")] = (cells[1], set(filter(None, re.split(r",\s*", cells[2]))))
    return rows


class MetricsUnderLoadTest(unittest.TestCase):
    """One server goes through everything that can happen to it; every test looks at the two scrapes around that."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--max-num-seqs", "8", "--max-waiting-seqs", "16", "--max-num-batched-tokens", "64",
                            "--cache-bytes", "1536KiB", world_size=2)
        cls.during = []  # scrapes while requests run
        try:
            cls.before = scrape(cls.server)
            cls.live_through_everything()
            cls.server.wait_until_idle()
            cls.after = scrape(cls.server)
        except BaseException:
            cls.server.stop()
            raise

    @classmethod
    def tearDownClass(cls):
        assert cls.server.stop() == 0, cls.server.stderr_lines

    @classmethod
    def live_through_everything(cls):
        server = cls.server
        # A crowd on every placement, larger than queue and cache: some wait, some are refused, some lose their cache.
        threads = [threading.Thread(target=cls.run_one, args=(number,)) for number in range(40)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            cls.during.append(scrape(server))
            threads[0].join(0.05)
            threads = [thread for thread in threads if thread.is_alive()] or threads[:1]
        # A client that leaves.
        stream = server.generation.Generate(request([1], max_tokens=2000, ignore_eos=True, placement="all-gdn"))
        next(stream)
        stream.cancel()
        server.wait_until_idle()
        # A stop token.
        first = server.complete([1, 5], max_tokens=1, ignore_eos=True).ids[0]
        stopped = server.complete([1, 5], max_tokens=4, stop_token_ids=[first])
        assert len(stopped.ids) == 1
        # Switches: each policy once with a request in flight, and one that cannot be.
        for policy, preset in [(admin.IN_FLIGHT_FINISH, "all-gdn"), (admin.IN_FLIGHT_RECOMPUTE, "all-kda"),
                               (admin.IN_FLIGHT_DRAIN, "all-sliding_window")]:
            stream = server.generation.Generate(request([1], max_tokens=60, ignore_eos=True))
            next(stream)
            wanted = admin.SetDefaultPlacementRequest(in_flight=policy)
            wanted.placement.preset = preset
            server.admin.SetDefaultPlacement(wanted, timeout=60)
            for _ in stream:
                pass
        wanted = admin.SetDefaultPlacementRequest()
        wanted.placement.mixers.names.extend(["nonsense"] * LAYERS)
        try:
            server.admin.SetDefaultPlacement(wanted, timeout=60)
            raise AssertionError("a placement of nonsense was accepted")
        except grpc.RpcError:
            pass

    @classmethod
    def run_one(cls, number):
        presets = ["all-attention", "all-sliding_window", "all-gdn", "all-kda", None]
        try:
            cls.server.complete([1] + list(range(8, 8 + 20)), placement=presets[number % 5], max_tokens=120, ignore_eos=True)
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error

    def check_exists(self, expressions):
        num_checked = 0
        for where, expression in expressions:
            names = list(selectors(expression))
            self.assertTrue(names or "switchyard:" in expression, f"{where}: reads nothing: {expression}")
            for name, matchers in names:
                if name in FOREIGN:
                    continue
                with self.subTest(where=where, name=name):
                    self.assertIsNotNone(self.after.family(name), f"{where}: the server exports no {name}")
                    found = self.after.select(name, matchers)
                    self.assertTrue(found, f"{where}: no series of {name} matches {matchers}")
                    num_checked += 1
        self.assertGreater(num_checked, 10)

    def check_moves(self, expressions):
        for name in sorted({name for _, expression in expressions for name, _ in selectors(expression)} - FOREIGN):
            family = self.after.family(name)
            if family in CONSTANT:
                self.assertGreater(sum(self.after.select(name).values()), 0, name)
                continue
            with self.subTest(name=name):
                idle = self.before.select(name)
                moved = any(now.select(name) != idle for now in [*self.during, self.after])
                self.assertEqual(moved, family not in GPU_ONLY, f"{name}: {idle}")

    def test_every_metric_of_a_panel_exists(self):
        self.check_exists(panel_expressions())

    def test_every_metric_of_a_panel_moves(self):
        self.check_moves(list(panel_expressions()))

    def test_every_metric_of_a_rule_exists(self):
        self.check_exists(rule_expressions())

    def test_every_metric_of_a_rule_moves(self):
        self.check_moves(list(rule_expressions()))

    def test_panels_and_rules_group_by_labels_that_there_are(self):
        for where, expression in [*panel_expressions(), *rule_expressions()]:
            known = set().union(*(self.after.labels[self.after.family(name)] for name, _ in selectors(expression)
                                  if name not in FOREIGN), {"instance", "job", "model_name", "le"})
            for clause in re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", expression):
                for label in filter(None, re.split(r",\s*", clause)):
                    self.assertIn(label, known, f"{where}: {expression}")

    def test_the_docs_list_every_metric_with_its_type_and_labels(self):
        exported = {name: (kind, self.after.labels[name] - {"model_name", "le"}) for name, kind in self.after.types.items()}
        self.assertEqual(documented(), exported)

    def test_counts_agree_with_what_happened(self):
        after = self.after
        ended = {reason: after.value("switchyard_request_success_total", finished_reason=reason)
                 for reason in ["stop", "length", "abort", "error"]}
        refused = after.value("switchyard_requests_refused_total", code="RESOURCE_EXHAUSTED")
        # The crowd, the client that left, two for the stop token, three that saw a switch.
        self.assertEqual(sum(ended.values()) + refused, 40 + 1 + 2 + 3)
        self.assertEqual((ended["stop"], ended["abort"], ended["error"]), (1, 1, 0))
        load = self.server.load()
        self.assertEqual(after.value("switchyard_generation_tokens_total"), load.num_generated_tokens)
        self.assertEqual(after.value("switchyard_num_preemptions_total"), load.num_preemptions)
        self.assertEqual(after.value("switchyard_kv_cache_usage_perc"), 0)
        self.assertEqual(after.value("switchyard_epoch"), self.before.value("switchyard_epoch") + 3)
        for policy in ["finish", "recompute", "drain"]:
            self.assertEqual(
                after.value("switchyard_placement_switches_total", policy=policy, outcome="success"), 1, policy)
        self.assertEqual(after.value("switchyard_placement_switches_total", outcome="refused"), 1)
        # Histograms of requests count each once.
        counted = after.value("switchyard_e2e_request_latency_seconds_count")
        self.assertEqual(counted, sum(ended.values()))
        self.assertEqual(after.value("switchyard_request_queue_time_seconds_count"), counted)
        # One gap less than tokens.
        first = after.value("switchyard_time_to_first_token_seconds_count")
        self.assertEqual(after.value("switchyard_inter_token_latency_seconds_count"),
                         after.value("switchyard_generation_tokens_total") - first)

    def test_counters_never_fall(self):
        last = self.before
        for now in [*self.during, self.after]:
            for (name, labels), value in last.samples.items():
                if last.types.get(last.family(name)) in ("counter", "histogram"):
                    self.assertGreaterEqual(now.samples[(name, labels)], value, f"{name} {labels}")
            last = now

    def test_nothing_else_is_served(self):
        with self.assertRaises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"http://{self.server.metrics_target}/", timeout=10)
        self.assertEqual(raised.exception.code, 404)


class DashboardFilesTest(unittest.TestCase):
    def test_the_dashboard_is_what_its_maker_writes(self):
        made = subprocess.run(["/usr/bin/python3", MAKE_DASHBOARD], check=True, capture_output=True, text=True).stdout
        with open(DASHBOARD, encoding="utf-8") as file:
            self.assertEqual(file.read(), made)

    def test_the_dashboard_has_its_rows_and_variables(self):
        with open(DASHBOARD, encoding="utf-8") as file:
            dashboard = json.load(file)
        self.assertEqual([p["title"] for p in dashboard["panels"] if p["type"] == "row"],
                         ["Overview", "Latency", "Placements", "Cache", "Workers and GPUs"])
        self.assertEqual([v["name"] for v in dashboard["templating"]["list"]], ["datasource", "model", "instance", "placement"])
        ids = [p["id"] for p in dashboard["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        cells = set()
        for panel in dashboard["panels"]:
            area = panel["gridPos"]
            for x in range(area["x"], area["x"] + area["w"]):
                for y in range(area["y"], area["y"] + area["h"]):
                    self.assertNotIn((x, y), cells, f"{panel['title']} lies on another panel")
                    cells.add((x, y))

    def test_rules_are_complete_and_documented(self):
        recorded = {rule["record"] for rule in rules() if "record" in rule}
        alerts = [rule for rule in rules() if "alert" in rule]
        names = [rule["alert"] for rule in alerts]
        self.assertEqual(len(names), len(set(names)))
        with open(DOCS, encoding="utf-8") as file:
            docs = file.read()
        for rule in alerts:
            self.assertIn(rule["labels"]["severity"], {"critical", "warning", "info"}, rule["alert"])
            self.assertEqual(set(rule["annotations"]), {"summary", "description"}, rule["alert"])
            self.assertRegex(docs, rf"\b{rule['alert']}\b")
            for used in re.findall(r"switchyard:[a-z0-9_:]+", rule["expr"]):
                self.assertIn(used, recorded, rule["alert"])


class LogTest(unittest.TestCase):
    SECRET = "Zanzibar umbrella"  # a prompt

    def run_server(self, *flags):
        server = Server(*flags, world_size=2)
        completion = server.complete(self.SECRET, max_tokens=5, ignore_eos=True, request_id="follow-me", placement="all-gdn")
        with self.assertRaises(grpc.RpcError):
            server.complete([1], request_id="bad", max_tokens=0)
        self.assertEqual(server.stop(), 0)
        return completion, server.stderr_lines

    def test_a_request_is_followed_by_its_id(self):
        completion, stderr = self.run_server("--log-format", "json", "--log-level", "debug")
        lines = [json.loads(line) for line in stderr]
        for line in lines:
            self.assertLessEqual({"time", "level", "component", "message"}, set(line))
        mine = [line for line in lines if line.get("request_id") == "follow-me"]
        self.assertEqual([line["message"] for line in mine],
                         ["request queued", "request admitted", "request has its first token", "request finished"])
        admitted, finished = mine[1], mine[3]
        self.assertEqual(admitted["component"], "coordinator")
        self.assertEqual((admitted["placement"], admitted["epoch"], finished["reason"]), ("all-gdn", 1, "length"))
        self.assertEqual((finished["prompt_tokens"], finished["generated_tokens"]), (completion.complete.prompt_tokens, 5))
        self.assertLessEqual(finished["ttft_seconds"], finished["e2e_seconds"])
        # The same sequence on every rank, from its first step to the plan that forgets it.
        sequence = admitted["sequence_id"]
        for rank in [0, 1]:
            worker = [line for line in lines if line["component"] == "worker" and line.get("rank") == rank]
            self.assertTrue(worker, f"rank {rank} says nothing")
            of_it = [line for line in worker if line.get("sequence_id") == sequence]
            self.assertEqual([line["message"] for line in of_it], ["sequence started", "sequence forgotten"])
            self.assertEqual(of_it[0]["step"], admitted["step"])
            self.assertGreater(of_it[1]["step"], finished["step"])
            steps = [line["step"] for line in worker if line["message"] == "step"]
            self.assertEqual([s for s in steps if admitted["step"] <= s <= finished["step"]],
                             list(range(admitted["step"], admitted["step"] + 5)))
        refused = [line for line in lines if line.get("request_id") == "bad"]
        self.assertEqual([(line["message"], line["code"]) for line in refused], [("request refused", "INVALID_ARGUMENT")])
        # The prompt is nobody's business, nor is what it was answered.
        for line in stderr:
            for secret in [*self.SECRET.split(), *(word for word in completion.text.split() if len(word) > 8)]:
                self.assertNotIn(secret, line)

    def test_text_logs_say_the_same_at_their_level(self):
        _, stderr = self.run_server("--log-level", "info")
        mine = [line for line in stderr if "request_id=follow-me" in line]
        self.assertEqual(len(mine), 2, stderr)
        self.assertRegex(mine[0], r"^\d{4}-\d\d-\d\dT[\d:.]{15}Z info coordinator: request admitted .*sequence_id=\d+ step=\d+ ")
        self.assertRegex(mine[1], r" request finished .*reason=length .*generated_tokens=5 ")
        _, quiet = self.run_server("--log-level", "error")
        self.assertEqual(quiet, [])

    def test_a_lost_rank_is_named(self):
        server = Server("--log-format", "json", world_size=2)
        stream = server.generation.Generate(request([1], max_tokens=4000, ignore_eos=True, request_id="victim"))
        next(stream)
        os.kill(server.worker_pids()[1], signal.SIGKILL)
        with self.assertRaises(grpc.RpcError):
            for _ in stream:
                pass
        self.assertEqual(server.process.wait(60), 1)
        server.stop()
        lines = [json.loads(line) for line in server.stderr_lines]
        lost = [line for line in lines if line["component"] == "coordinator" and line["level"] == "error"
                and "step" in line]
        self.assertEqual([line["rank"] for line in lost], [1], lines)
        self.assertIn("rank 1", lost[0]["message"])
        failed = [line for line in lines if line.get("request_id") == "victim" and line["message"] == "request failed"]
        self.assertEqual([(line["level"], line["code"]) for line in failed], [("warning", "UNAVAILABLE")])


if __name__ == "__main__":
    testing.main()
