"""A recipe to choose among them on a model of a few thousand parameters."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from task_rows import rows

from engine.config import build_recipe
from engine.runs import Invocation
from jobs.registry import load_job


@pytest.fixture
def bench(tmp_path, small):
    """Writes rows and chooses: `bench.write(rows)`, `bench.run(**keys)`."""

    class Bench:
        path = tmp_path / "rows.parquet"
        runs = tmp_path / "runs"

        def write(self, made):
            pq.write_table(pa.Table.from_pylist(made), self.path)

        def recipe(self, job="select-tasks", **keys):
            data = {
                "name": "t",
                "runs": str(self.runs),
                "model": str(small),
                "source": {"paths": [str(self.path)], "roots": [str(tmp_path)]},
                "format": "responses",
                "tokens": {"window": 128, "held_out": 0.3},
                "training": {"steps": 6, "examples": 8, "measure_every": 2},
                "optimiser": {"learning_rate": 1e-2},
                "parallel": {"tokens_per_device": 512, "cpus": 0.5},
                "workers": 1,
            }
            if job == "select-tasks":
                data |= {"target": "target", "lora": {"rank": 2}, "estimate": {"width": 16}}
            for key, value in keys.items():
                data[key] = {**data[key], **value} if isinstance(data.get(key), dict) else value
            return build_recipe(load_job(job).RECIPE, data)

        def run(self, job="select-tasks", *, dry_run=False, fresh=False, **keys):
            call = Invocation("headrace x", dry_run=dry_run, fresh=fresh)
            return load_job(job).run(self.recipe(job, **keys), call)

    made = Bench()
    made.write(rows())
    return made
