"""Sums the test.xml files below a folder, names what failed, and prints `N passed, N failed` as the last line.

usage: count_tests.py TESTLOGS EXIT_CODE

Exits with EXIT_CODE (Bazel's), or 1 if a test failed or none ran. A target that fails without a failed test in its
XML (it crashed, timed out or did not build) counts as one failure.
"""

import pathlib
import sys
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


def main():
    logs, code = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    passed, failed = 0, []
    for path in sorted(logs.rglob("test.xml")) if sys.argv[1] else []:
        try:
            more_passed, more_failed = count(path)
        except ElementTree.ParseError as error:
            more_passed, more_failed = 0, [f"{path.parent.name}: {error}"]
        passed += more_passed
        failed += [f"//{path.parent.relative_to(logs)}: {name}" for name in more_failed]
    for name in failed:
        print(f"failed: {name}")
    if not failed and code not in (0, 4):
        failed.append("a target did not build, crashed or timed out (see above)")
        print(f"failed: {failed[0]}")
    if not passed and not failed:
        print("no test ran")
        code = code or 1
    print(f"{passed} passed, {len(failed)} failed", flush=True)
    sys.exit(code or (1 if failed else 0))


main()
