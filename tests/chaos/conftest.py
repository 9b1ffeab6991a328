"""The private network of the live tests."""

from tests.live.conftest import private_network as private_network
