"""The walkthrough, step by step, with the real programs' output: `./demo`."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab import Host, Lab, Process

IGD = (f"{sys.prefix}/bin/igd",)
READY = "ready for the peers"

_PLAN = """
    the internet              the WireGuard server              a VPN client
    net  60.60.60.2 --------- ens0 60.60.60.1
                              wg0  10.100.0.1 ---(tunnel)------ wg0 10.100.0.2  c1

 Three network namespaces, real wg-quick, and on the server the usual lines: FORWARD ACCEPT and MASQUERADE.
"""


class Demo:
    """Shows commands and what they print, and remembers which of the promised words were seen."""

    def __init__(self) -> None:
        self._promises: list[tuple[str, bool]] = []

    def title(self, text: str) -> None:
        """Begin a step."""
        print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)

    def show(self, host: Host, *command: str, **promises: str) -> str:
        """Run a command to its end, show its output, and look in it for what is promised.

        A promise is a sentence, with _ for the spaces, and the words that keep it.
        """
        self._prompt(host, *command)
        done = host.run(*command, check=False)
        output = f"{done.stdout}{done.stderr}"
        for line in output.splitlines():
            if line.strip():
                print(f"  {line}")
        for sentence, words in promises.items():
            self.check(sentence.replace("_", " "), kept=words in output)
        return output

    @contextmanager
    def running(self, host: Host, *command: str, until: str) -> Iterator[Process]:
        """Have a command run in the background, from when it has printed `until`."""
        self._prompt(host, *command, "&")
        with host.start(*command) as process:
            process.wait_for(until)
            yield process

    def check(self, promise: str, *, kept: bool) -> None:
        """Note whether a promise was kept."""
        self._promises.append((promise, kept))

    def summary(self) -> int:
        """Show every promise, kept or not; the exit status."""
        self.title("Summary")
        for promise, kept in self._promises:
            print(f"  {'ok    ' if kept else 'FAILED'}  {promise}")
        return 0 if all(kept for _, kept in self._promises) else 1

    def _prompt(self, host: Host, *command: str) -> None:
        words = ["igd" if word in IGD else word for word in command]
        print(f"{host.name}# {words[2] if words[0] == 'sh' else ' '.join(words)}", flush=True)


def main() -> int:
    """Tell the story; 0 when all that it promises was seen."""
    demo = Demo()
    print(_PLAN)
    with Lab() as lab:
        before = lab.srv.run("nft", "list", "ruleset").stdout
        demo.title("1. Without igd, a client finds no gateway.")
        demo.show(lab.c1, "external-ip", without_igd_a_client_finds_no_gateway="No IGD UPnP Device found")

        demo.title("2. One command on the server, no configuration.")
        with demo.running(lab.srv, *IGD, "run", "wg0", until=READY) as igd:
            _tell_lines(igd)
            _map_and_talk(demo, lab)
            demo.title("6. Killed without warning, and started again: nothing is lost, and nothing is doubled.")
            print(f"srv# kill -9 {igd.pid}")
            igd.signal(9)
            igd.wait()
        with demo.running(lab.srv, *IGD, "run", "wg0", until=READY):
            demo.show(lab.srv, *IGD, "list", "wg0", after_kill_9_the_mapping_is_there_again="10.100.0.2:8043")

            demo.title("7. Stopped, it leaves no trace.")
            demo.show(lab.srv, *IGD, "stop", "wg0")
        after = demo.show(lab.srv, "nft", "list", "ruleset")
        demo.check("after the stop the server's rules are what they were", kept=_plain(after) == _plain(before))
    return demo.summary()


def _map_and_talk(demo: Demo, lab: Lab) -> None:
    demo.title("3. Now the client learns the server's public address.")
    demo.show(lab.c1, "external-ip", with_igd_it_learns_the_public_address="60.60.60.1")

    demo.title("4. It opens a port.")
    mapped = "external 60.60.60.1:8043 TCP is redirected to internal 10.100.0.2:8043 (duration=300)"
    demo.show(lab.c1, "sh", "-c", "upnpc -n 10.100.0.2 8043 8043 tcp 300 | grep external", it_maps_a_port=mapped)
    demo.show(lab.srv, *IGD, "list", "wg0")
    demo.show(lab.srv, *"nft list table inet igd_wg0".split())

    demo.title("5. And a machine on the internet talks to it, through the server's public address.")
    answer = 'SYSTEM:read words; echo "the client heard $words from $SOCAT_PEERADDR"'
    with demo.running(lab.c1, *"socat -d -d TCP-LISTEN:8043,reuseaddr".split(), answer, until="listening on"):
        heard = "the client heard hello from 60.60.60.2"
        demo.show(
            lab.net, "sh", "-c", "echo hello | socat -t5 - TCP:60.60.60.1:8043", a_stranger_talks_through_it=heard
        )


def _tell_lines(igd: Process) -> None:
    for line in igd.lines:
        print(f"  {line}")


def _plain(ruleset: str) -> str:
    """The rules without their counters, which traffic moves, and iptables-nft's remarks on how they were read."""
    return re.sub(r"(?m)^#.*\n|counter packets \d+ bytes \d+", "", ruleset).strip()


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"
    sys.exit(main())
