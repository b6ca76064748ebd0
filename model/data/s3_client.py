"""boto3's client for an address in S3, and what it raises as one error of ours. Knows no cache and no files.

Endpoint, region and credentials are those of the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE, ...),
as boto3 reads them. They are neither written nor printed here.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from model.errors import DataError, ExtraMissing, Unreachable

SCHEME = "s3://"
CONNECT_S, READ_S = 10, 60
"""How long a store may be silent."""
TOGETHER = 16
"""Objects of a folder that are downloaded at a time."""
TORN_TRIES = 4
"""Of a request whose answer broke off."""
REFUSED = (
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed",
    "TokenRefreshRequired",
)  # fmt: skip
"""What S3 says of credentials that are none; of good ones that do not suffice it says 403 and something else."""


class TornError(ConnectionError):
    """An answer broke off in its head, or is no answer of S3."""


def client_for(uri: str) -> Any:
    environment = frozenset(pair for pair in os.environ.items() if pair[0].startswith("AWS_"))
    try:
        with told(uri):
            return _made_client(os.getpid(), environment)
    except ImportError as error:
        raise ExtraMissing(
            f"`{uri}` needs boto3, which is not installed here: pip install 'ddetr-automl[s3]'"
        ) from error


@lru_cache(maxsize=1)
def _made_client(process: int, environment: frozenset[tuple[str, str]]) -> Any:
    """Making one takes a good part of a second; all threads may use it, but no forked process."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_S, read_timeout=READ_S, max_pool_connections=TOGETHER, retries={"mode": "standard"}
    )
    return boto3.session.Session().client("s3", config=config)


def answer(ask: Callable[[], dict[str, Any]], *needed: str, tries: int = TORN_TRIES) -> dict[str, Any]:
    """What a client says. TornError where it lacks what is needed: a head that broke off counts as whole for Python's
    own HTTP, which hands on the lines that came, the last one maybe in part."""
    from botocore.parsers import ResponseParserError

    for left in reversed(range(tries)):
        try:
            found = ask()
        except (ResponseParserError, ValueError) as error:
            if not left:
                raise TornError(type(error).__name__) from error
        else:
            if found.keys() >= set(needed):
                return found
    raise TornError(f"without {' or '.join(needed)}")


def status(error: Any) -> int:
    return int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))


@contextmanager
def told(uri: str, client: Any = None) -> Iterator[None]:
    """What boto3 raises becomes one DataError. Only words of which we know that they hold no secret are repeated."""
    from botocore import exceptions as aws

    try:
        yield
    except aws.ClientError as error:
        raise of_answer(uri, error) from error
    except (aws.HTTPClientError, aws.ConnectionError, TornError) as error:
        at = urlsplit(client.meta.endpoint_url).netloc.rpartition("@")[2] if client is not None else "S3"
        raise Unreachable(
            f"`{uri}` must be reached, but {at} does not answer ({type(error).__name__}); correct AWS_ENDPOINT_URL, or "
            "try again when the store or the network is back."
        ) from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound) as error:
        raise _without_credentials(uri, str(error).rstrip(".")) from error
    except (aws.CredentialRetrievalError, aws.TokenRetrievalError, aws.SSOError) as error:
        raise _without_credentials(uri, type(error).__name__) from error
    except (aws.ParamValidationError, aws.UnsupportedS3ConfigurationError) as error:
        raise DataError(
            f"`{uri}` must have the form {SCHEME}BUCKET/KEY with a bucket's name as S3 allows it; correct it."
        ) from error
    except aws.BotoCoreError as error:
        raise DataError(f"`{uri}` cannot be read ({type(error).__name__}); correct the AWS_... variables.") from error
    except ValueError as error:
        if client is not None or "endpoint" not in str(error):
            raise
        raise DataError(
            "`AWS_ENDPOINT_URL` must be an address such as https://store.example:9000, but is none; correct it."
        ) from error


def _without_credentials(uri: str, why: str) -> DataError:
    return DataError(
        f"`{uri}` needs credentials, but there are none that can be used ({why}); set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, on every machine that reads it."
    )


def of_answer(uri: str, error: Any) -> DataError:
    """For what the store says in place of an object."""
    code, number = str(error.response["Error"].get("Code", "")), status(error)
    bucket = uri.removeprefix(SCHEME).partition("/")[0]
    if code == "NoSuchBucket":
        return DataError(f"`{uri}` must be in a bucket that exists, but there is no `{bucket}`; correct its name.")
    if code in REFUSED:
        return _without_credentials(uri, code)
    if number in (401, 403):
        return DataError(
            f"`{uri}` may not be read with the credentials in use ({code}); give them s3:GetObject and s3:ListBucket, "
            "or correct the address: S3 says the same of a key that is not there."
        )
    if number >= 500 or code in ("SlowDown", "RequestTimeout"):
        return Unreachable(f"`{uri}` must be read, but the store answers {number} {code}; try again later.")
    said = str(error.response["Error"].get("Message", "")).rstrip(".")
    return DataError(f"`{uri}` must be read, but the store answers {code} ({said}); correct the address or the object.")
