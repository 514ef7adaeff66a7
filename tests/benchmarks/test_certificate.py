"""``mno bench certificate`` prints a row for each family and fails when a guarantee does."""

import re

from click.testing import CliRunner

from benchmarks.certificate import bench_certificate
from benchmarks.certificate_cases import FAMILIES


def test_prints_a_row_for_each_family():
    result = CliRunner().invoke(bench_certificate, ["--evaluations", "30", "--requests", "2"])
    assert result.exit_code == 0, result.output
    for family in FAMILIES:
        assert re.search(rf"^ *{family} +3 +0 +\d", result.output, re.MULTILINE)
    assert "2 requests with a tolerance: 2 within it, 0 refused, 0 beyond it" in result.output
