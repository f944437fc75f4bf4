"""Hashes of nets."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("spikingjelly")

from snn_ext.evaluation.fingerprint import fingerprint  # noqa: E402
from tests.evaluation.nets import small_net  # noqa: E402


def test_the_hash_of_a_net_is_that_of_its_content_in_any_process() -> None:
    code = (
        "from tests.evaluation.nets import small_net; from snn_ext.evaluation.fingerprint import fingerprint\n"
        "print(fingerprint(small_net()))"
    )
    options: dict[str, Any] = {"check": True, "capture_output": True, "text": True}
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environment, **options)
    assert done.stdout.strip() == fingerprint(small_net())
