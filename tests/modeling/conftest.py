from tests.helpers import one_thread  # noqa: F401 - a fixture
