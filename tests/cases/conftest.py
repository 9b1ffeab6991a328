"""The scripted upstream and the publishers of the gateway's tests."""

from tests.gateway.conftest import engines as engines
from tests.gateway.conftest import serve as serve
from tests.gateway.conftest import upstream as upstream
from tests.gateway.test_feeds import publish as publish
