"""The table, its JSON and its exit status."""

import pytest

from igd.commands import doctoring
from igd.core.obstacle import Obstacle
from igd.firewall.backend import FirewallError
from igd.operator.doctor import checks, report
from igd.operator.doctor.check import Check, Colour, Finding, green
from igd.operator.doctor.checks import Row
from igd.operator.doctor.machine import Machine

GREEN = Row("interface", green("wg0 is up")[0])
YELLOW = Row("clock", Finding(Colour.YELLOW, "it is 1970"))
RED = Row("way out", Finding(Colour.RED, "none\x1b[2J", "ip link set dev ens0 up\nsysctl -w net.ipv4.ip_forward=1"))


@pytest.mark.parametrize(
    ("rows", "worst"),
    [([], "green"), ([GREEN], "green"), ([YELLOW, GREEN], "yellow"), ([GREEN, RED, YELLOW], "red")],
)
def test_the_worst_colour(rows: list[Row], worst: str) -> None:
    assert report.worst({"wg0": [GREEN], "wg1": rows}) == worst


def test_lines_to_paste_stand_alone() -> None:
    lines = report.table({"wg0": [GREEN, RED]}, coloured=False).splitlines()
    assert lines == [
        "green   interface  wg0 is up",
        "red     way out    none\\x1b[2J",
        "        ip link set dev ens0 up",
        "        sysctl -w net.ipv4.ip_forward=1",
    ]


def test_several_interfaces_have_headings() -> None:
    assert report.table({"wg0": [GREEN], "wg1": [YELLOW]}, coloured=False).splitlines()[::2] == ["wg0", "wg1"]


def test_colours_are_around_the_word_alone() -> None:
    assert report.table({"wg0": [YELLOW]}, coloured=True) == "\x1b[33myellow\x1b[0m  clock  it is 1970"


def test_json() -> None:
    assert report.as_json({"wg0": [YELLOW]}) == {
        "worst": "yellow",
        "interfaces": {"wg0": [{"check": "clock", "colour": "yellow", "text": "it is 1970", "remedy": ""}]},
    }


def test_the_help_names_every_exit_status() -> None:
    assert {0, doctoring.DOUBTFUL, 1} == {int(word) for word in doctoring.DOCTOR.purpose.split() if word.isdigit()}


@pytest.mark.parametrize("failure", [PermissionError("not yours"), FirewallError("not yours")])
async def test_what_cannot_be_examined_is_a_row(failure: Exception) -> None:
    async def fail(_machine: Machine) -> list[Finding]:
        raise failure

    async def work(_machine: Machine) -> list[Finding]:
        return green("well")

    machine = Machine.__new__(Machine)
    rows = await checks.examine(machine, [Check("first", fail), Check("second", work)])
    assert [(row.check, row.finding.colour) for row in rows] == [("first", "yellow"), ("second", "green")]
    assert rows[0].finding.text == "cannot be examined: not yours"


def test_an_obstacle_in_a_line_of_the_log() -> None:
    assert str(Obstacle("it is off")) == "it is off"
    assert str(Obstacle("it is off", "turn it on")) == "it is off; this helps: turn it on"
    assert str(Obstacle("it is off", "turn it on", "")) == "it is off: turn it on"
