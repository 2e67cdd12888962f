"""./hanquan sign"""

from typing import Annotated

from cyclopts import Parameter

from kernel.clock import SystemClock
from stack.console import Data
from stack.data_folder import DEFAULT, DataFolder
from stack.errors import StackError
from stack.examples import curl
from stack.keystore import KeyStore
from stack.reach import Reach

_SERVICE_OF = {"/v1/claims": "issuer", "/v1/vouchers": "issuer"}
_SERVICE_OF |= dict.fromkeys(("/v1/stocks", "/v1/rounds", "/v1/campaigns"), "operator")
_METHODS = ("GET", "POST")


def sign(
    name: Annotated[str, Parameter(help="Whose key: wechat, shop, or another name in keys.json.")],
    method: Annotated[str, Parameter(help="GET or POST.")],
    path: Annotated[str, Parameter(help="Address from the first slash on, query included.")],
    body: Annotated[str, Parameter(help="The JSON to send.")] = "",
    *,
    data: Data = DEFAULT,
) -> None:
    """Sign a call with a key of the data folder and print it as a curl line; pipe it into sh to send it."""
    if method not in _METHODS or not path.startswith("/v1/"):
        raise StackError("say GET or POST, and an address that starts with /v1/")
    reach = Reach(DataFolder(data))
    service = next((s for start, s in _SERVICE_OF.items() if path.startswith(start)), "redemption")
    signer = KeyStore(reach.folder.path).get(name)
    print(curl(signer, reach.addresses[service], method, path, body, SystemClock()))
