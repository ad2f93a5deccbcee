"""What the kernel holds is compared with what igd says, mapping by mapping."""

import pytest

from igd.operator.doctor.check import Colour, Finding
from igd.operator.doctor.kernel_state import Opened, compared

A, B, PINHOLE = Opened("TCP", 8043), Opened("UDP", 8043), Opened("TCP", 22, "2001:db8::2")


@pytest.mark.parametrize(
    ("expected", "present", "findings"),
    [
        ({A, PINHOLE}, {A, PINHOLE}, [Finding(Colour.GREEN, "the kernel has all 2 mappings, and no others")]),
        ({A, B}, {B}, [Finding(Colour.RED, "the kernel does not have mappings of igd's: TCP 8043", "mend")]),
        (
            {A},
            {A, B, PINHOLE},
            [Finding(Colour.RED, "the kernel has mappings that igd does not: TCP [2001:db8::2]:22, UDP 8043", "mend")],
        ),
    ],
)
def test_differences_are_named(expected: set[Opened], present: set[Opened], findings: list[Finding]) -> None:
    assert compared(expected, present, "mend") == findings
