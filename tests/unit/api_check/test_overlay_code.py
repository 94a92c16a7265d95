from __future__ import annotations

import pytest
from overlay_tools.errors import ContractError

from unit.api_check.derived import check
from unit.conftest import Miniature


def test_a_file_that_is_not_valid_python_is_named_with_its_line(ours: Miniature) -> None:
    ours.write("overlay/sglang/srt/models/ours.py", "import sglang\nclass (\n")
    with pytest.raises(ContractError, match=r"overlay/sglang/srt/models/ours\.py: .*line 2"):
        check(ours)
