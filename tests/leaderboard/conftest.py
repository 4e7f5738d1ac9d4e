"""Pages of the leaderboard without the time that their plots take."""

from __future__ import annotations

import pytest

from mixaug.leaderboard import plots


@pytest.fixture
def drawn() -> None:
    """The pages of this test have their plots drawn; of all others a title and an empty image stand there."""


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(plots, "data_uri", lambda figure: "data:image/svg+xml;base64,")
