import io
import sys

from maijax.data.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_shows_on_a_terminal_only(monkeypatch):
    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with progress("reading stories", total=3) as done:
            done(3)
        assert ("reading stories" in stream.getvalue()) == shown
