import pytest

from tests.helpers import fake_job


@pytest.fixture
def place(tmp_path):
    """A directory with a model, for jobs on the fake runner."""
    return fake_job.make_directory(tmp_path)
