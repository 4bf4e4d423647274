"""Client of the router, for internal services.

    with Client("127.0.0.1:7000") as client:
        for response in client.generate(make_request("Hello", domain="support-chat")):
            print(response.text, end="")

Failed calls raise the errors of `sparsity.errors`.
"""

from sparsity_client.client import Client, make_request

__all__ = ["Client", "make_request"]
