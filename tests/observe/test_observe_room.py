import subprocess
import sys

import engine.observe


def _loaded(program):
    program += "; import sys; print(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    )


def test_every_public_name_is_there():
    for name in engine.observe.__all__:
        assert getattr(engine.observe, name) is not None


def test_importing_the_room_loads_nothing_heavy():
    names = ", ".join(engine.observe.__all__)
    loaded = _loaded(f"from engine.observe import {names}")
    assert not loaded & {"torch", "ray", "matplotlib", "tensorboardX", "jinja2", "numpy"}


def test_using_the_room_never_loads_torch_or_ray(tmp_path):
    loaded = _loaded(
        "from upath import UPath; from engine.observe import MetricsWriter, Report, plots;"
        f"w = MetricsWriter(UPath({str(tmp_path)!r})).__enter__(); w.log(1, loss=1.0); w.__exit__(None, None, None);"
        "r = Report('x'); r.figure('y', plots.bars({'a': 1})); r.code('c', 'x = 1'); r.html()"
    )
    assert {"tensorboardX", "matplotlib", "pygments"} <= loaded
    assert not loaded & {"ray", "torch._C"}
