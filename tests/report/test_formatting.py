"""Numbers as text."""

from __future__ import annotations

from saelens_adaptive_ortho.report.formatting import estimate, number, signed


def test_decimals_follow_the_uncertainty() -> None:
    assert estimate(-0.00247, (-0.00450, -0.00043)) == ("−0.0025", "[−0.0045, −0.0004]")
    # The verdict depends on the sign of the bound, so the bound must not read as zero.
    assert estimate(0.050003, (0.000003, 0.100003))[1] == "[0.000, +0.100]"
    assert estimate(0.0504, (0.0004, 0.1004))[1] == "[+0.0004, +0.1004]"
    assert estimate(0.0, (0.0, 0.0)) == ("0", "[0, 0]")
    assert number(-0.001, 2) == "0.00"
    assert signed(2048000.0, 0) == "+2,048,000"
    assert number(1.234e7 + 0.5, 1) == "1.23e+07"
