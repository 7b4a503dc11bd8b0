"""What a training saw: one line a step, each step once."""

from engine.observe import TrajectoryRecorder, read_trajectory


def test_steps_are_kept_and_a_resume_cuts_off_what_it_repeats(tmp_path):
    recorder = TrajectoryRecorder(tmp_path / "run")
    for step in (1, 2, 3):
        recorder.record(step, [step, 10 * step], loss=1 / step)
    with (tmp_path / "run" / "trajectory.jsonl").open("a") as file:
        file.write('{"step": 4, "exam')  # a kill
    again = TrajectoryRecorder(tmp_path / "run", done=2)
    again.record(3, [7])
    assert read_trajectory(tmp_path / "run") == [
        {"step": 1, "examples": [1, 10], "loss": 1.0},
        {"step": 2, "examples": [2, 20], "loss": 0.5},
        {"step": 3, "examples": [7]},
    ]
    assert read_trajectory(tmp_path) == []
