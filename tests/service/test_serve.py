"""The address of a service, before anybody is answered."""

import pytest

from service.serve import listen_on
from service.settings import InvalidSettings


def test_two_services_cannot_have_one_address_even_before_they_are_warm() -> None:
    with listen_on("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InvalidSettings, match=f"{port}.*choose another port"):
            listen_on("127.0.0.1", port)
