"""DeepSpeed's Adams are compiled by one process at a time, and a build that was killed stops nobody."""

import threading

from etd_ds.engine import adam


def test_a_lock_that_a_killed_build_left_behind_is_not_waited_for(tmp_path):
    (tmp_path / "lock").touch()
    with adam.turn(tmp_path):
        assert not (tmp_path / "lock").exists()


def test_the_lock_of_a_build_that_goes_on_is_left_alone(tmp_path):
    came = threading.Event()

    def other():
        with adam.turn(tmp_path):
            came.set()

    with adam.turn(tmp_path):
        (tmp_path / "lock").touch()  # torch's, while it compiles
        thread = threading.Thread(target=other)
        thread.start()
        assert not came.wait(0.2)
        assert (tmp_path / "lock").exists()
    assert came.wait(30)
    thread.join()
