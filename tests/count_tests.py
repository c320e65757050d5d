"""Sums the tests of a `bazel test` run, names what failed, and prints `N passed, N failed` as the last line.

usage: count_tests.py EVENTS EXIT_CODE

EVENTS is the run's --build_event_json_file: it names the results of this run and no others, those from a cache too.
Exits with EXIT_CODE (Bazel's), or 1 if a test failed or none ran. A target that fails without a failed test in its
XML (it crashed, timed out or did not build) counts as one failure.
"""

import json
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree


def count(xml_path):
    """Returns (number passed, names failed) of one test.xml."""
    passed, failed = 0, []
    for case in ElementTree.parse(xml_path).getroot().iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif case.get("status") != "notrun" and case.find("skipped") is None:
            passed += 1
    return passed, failed


def results(events_path):
    """{target: (whether it passed, path of its test.xml or None)} of the run, by the last attempt of each."""
    targets = {}
    with open(events_path, encoding="utf-8") as events:
        for line in events:
            event = json.loads(line)
            key, result = event["id"].get("testResult"), event.get("testResult")
            if key is None or result is None:
                continue
            xml = next((urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path)
                        for output in result.get("testActionOutput", []) if output["name"] == "test.xml"), None)
            targets[(key["label"], key.get("run"), key.get("shard"))] = (result.get("status") == "PASSED", xml)
    return targets


def main():
    events, code = sys.argv[1], int(sys.argv[2])
    passed, failed = 0, []
    for (label, *_), (target_passed, xml) in sorted(results(events).items()):
        try:
            more_passed, more_failed = count(xml) if xml else (0, [])
        except (OSError, ElementTree.ParseError) as error:
            more_passed, more_failed = 0, [str(error)]
        if not target_passed and not more_failed:
            more_failed = ["it crashed or timed out (see above)"]
        passed += more_passed
        failed += [f"{label}: {name}" for name in more_failed]
    for name in failed:
        print(f"failed: {name}")
    if not failed and code not in (0, 4):
        failed.append("a target did not build (see above)")
        print(f"failed: {failed[0]}")
    if not passed and not failed:
        print("no test ran")
        code = code or 1
    print(f"{passed} passed, {len(failed)} failed", flush=True)
    sys.exit(code or (1 if failed else 0))


main()
