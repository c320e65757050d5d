"""main() for the test files: runs unittest and writes the XML report that Bazel asks for."""

import os
import sys
import time
import unittest
from xml.sax.saxutils import quoteattr


class _Result(unittest.TextTestResult):
    def __init__(self, *args):
        super().__init__(*args)
        self.cases = []  # (test, seconds, failure text or None)
        self._started = 0.0

    def startTest(self, test):
        self._started = time.monotonic()
        super().startTest(test)

    def _record(self, test, error=None):
        self.cases.append((test, time.monotonic() - self._started, error))

    def addSuccess(self, test):
        super().addSuccess(test)
        self._record(test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self._record(test, self._exc_info_to_string(err, test))

    def addError(self, test, err):
        super().addError(test, err)
        self._record(test, self._exc_info_to_string(err, test))

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._record(subtest, self._exc_info_to_string(err, test))


def _write_xml(path, cases):
    with open(path, "w", encoding="utf-8") as out:
        failures = sum(error is not None for _, _, error in cases)
        out.write(f'<testsuites><testsuite name="python" tests="{len(cases)}" failures="{failures}">\n')
        for test, seconds, error in cases:
            group, _, name = test.id().rpartition(".")
            out.write(f"<testcase classname={quoteattr(group)} name={quoteattr(name)} "
                      f'status="run" time="{seconds:.3f}"')
            out.write(f"><failure message={quoteattr(error[-4000:])}/></testcase>\n" if error else "/>\n")
        out.write("</testsuite></testsuites>\n")


def main():
    runner = unittest.TextTestRunner(resultclass=_Result, verbosity=2)
    program = unittest.main(module="__main__", testRunner=runner, exit=False, argv=sys.argv[:1])
    if "XML_OUTPUT_FILE" in os.environ:
        _write_xml(os.environ["XML_OUTPUT_FILE"], program.result.cases)
    sys.exit(not program.result.wasSuccessful())
