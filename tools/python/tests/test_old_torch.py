"""Where torch is too old for process groups in Python, its import says so and what to do."""

import subprocess
import sys


def test_a_torch_that_is_too_old_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "torch.py").write_text('__version__ = "1.13.1+dfsg"\n')
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import shardproof.torch"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 1
    assert "needs torch 2.4 or newer, and this is 1.13.1+dfsg" in done.stderr and "pip install torch" in done.stderr
