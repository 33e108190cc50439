"""Makes a bucket where it is not there yet: python bucket.py NAME, with AWS's own variables."""

import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


def main(name: str) -> None:
    """Raises what the store says where it refuses."""
    client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
    try:
        client.create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou",):
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
