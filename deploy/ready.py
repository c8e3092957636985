"""The health check of the service's image: asks ``/v1/ready`` with the first of its own keys."""

import os
import urllib.request

token = os.environ["API_KEYS"].split(":")[0]
asked = urllib.request.Request(
    f"http://127.0.0.1:{os.environ.get('PORT') or 8080}/v1/ready",
    headers={"Authorization": f"Bearer {token}"},
)
urllib.request.urlopen(asked, timeout=4).close()  # noqa: S310
