"""A few rolling restarts under load; tests/soak/rolling_restarts makes many."""

import unittest

import rolling_restarts
import testing


class RollingRestartTest(unittest.TestCase):
    def test_no_request_fails(self):
        completed, _, failures, codes = rolling_restarts.run(6)
        self.assertEqual(failures, [])
        self.assertEqual(set(codes), {0})
        self.assertGreater(completed, 24)


if __name__ == "__main__":
    testing.main()
