"""Root reads the record of what is in the kernel, and whoever controls the service's user may have written it."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from igd.config import Config
from igd.firewall import kernel
from igd.firewall.site import MARK
from igd.process.in_kernel import NAME, InKernel
from igd.process.instance import Instance

Removed = list[tuple[int, tuple[IPv4Network | IPv6Network, ...]]]


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return Instance("wg0")


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> Removed:
    """Marks and destinations of the removals, which touch no kernel."""
    found: Removed = []
    monkeypatch.setattr(
        kernel, "remove_everything", lambda _interface, mark, destinations: found.append((mark, destinations))
    )
    return found


def config(mark: int, static: str) -> Config:
    return Config.model_validate(
        {
            "firewall": {"mark": mark},
            "peers": {"laptop": {"public_key": "A" * 43 + "=", "static": [f"tcp 443 {static} 8443"]}},
        }
    )


def test_what_is_removed_is_what_was_recorded(instance: Instance, removed: Removed) -> None:
    """Whatever the configuration is now: here there is none."""
    InKernel(instance).record(config(1 << 20, "10.100.0.2"))
    assert InKernel(instance).is_recorded
    InKernel(instance).remove()
    assert removed == [(1 << 20, (IPv4Network("10.100.0.2/32"),))]
    assert not InKernel(instance).is_recorded
    InKernel(instance).remove()
    assert removed[1:] == [(MARK, ())]


def test_it_stays_with_the_same_mark_only(instance: Instance, removed: Removed) -> None:
    first, second, third = (InKernel(instance) for _ in range(3))
    first.adopt(config(1 << 20, "10.100.0.2"))
    assert (first.stays, first.is_recorded) == (False, False)
    first.record(config(1 << 20, "10.100.0.2"))
    second.adopt(config(1 << 20, "10.100.0.3"))
    assert (second.stays, removed) == (True, [])
    second.record(config(1 << 20, "10.100.0.3"))
    third.adopt(config(1 << 21, "10.100.0.4"))
    assert (third.stays, removed) == (False, [(1 << 20, (IPv4Network("10.100.0.3/32"),))])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        "\0",
        '{"mark": 0, "store": "", "static": []}',
        '{"mark": Infinity, "store": "", "static": []}',
        '{"mark": 4294967296, "store": "", "static": []}',
        '{"mark": 1, "store": 1, "static": []}',
        '{"mark": 1, "store": "", "static": 1}',
        '{"mark": 1, "store": "", "static": ["10.0.0.0/8"]}',
    ],
)
def test_an_invalid_record_is_none(instance: Instance, removed: Removed, text: str) -> None:
    (instance.runtime_directory / NAME).write_text(text)
    InKernel(instance).remove()
    assert removed == [(MARK, ())]


def test_a_link_is_neither_read_nor_written(instance: Instance, removed: Removed, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text('{"mark": 1, "store": "", "static": []}')
    (tmp_path / NAME).symlink_to(other)
    in_kernel = InKernel(instance)
    in_kernel.record(config(1 << 20, "10.100.0.2"))
    assert other.read_text() == '{"mark": 1, "store": "", "static": []}'
    in_kernel.remove()
    assert removed == [(MARK, ())]
    assert not (tmp_path / NAME).is_symlink()
