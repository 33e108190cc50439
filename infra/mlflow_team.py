"""Makes a team of an MLflow server with names and passwords, as its administrator:

    python mlflow_team.py http://127.0.0.1:5000 FOLDER MODEL...

FOLDER has the passwords (infra/secrets.sh makes it): mlflow_admin, mlflow_trainer and
mlflow_promoter. Both models of each MODEL are made here, because who makes a model may do
everything with it. What is there already stays, so it can be given again for more models.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

TAKEN = "RESOURCE_ALREADY_EXISTS"


def main(server: str, secrets: str, *models: str) -> None:
    """Raises MlflowException where the server refuses."""

    def password(name: str) -> str:
        return (Path(secrets) / f"mlflow_{name}").read_text().strip()

    os.environ["MLFLOW_TRACKING_USERNAME"] = "admin"
    os.environ["MLFLOW_TRACKING_PASSWORD"] = password("admin")
    client, auth = MlflowClient(server, server), AuthServiceClient(server)
    for user in ("trainer", "promoter"):
        once(auth.create_user, user, password(user))
    for model in models:
        once(client.create_registered_model, model)
        once(client.create_registered_model, f"{model}-candidates")
        for user, name in (("trainer", f"{model}-candidates"), ("promoter", model)):
            once(auth.grant_user_permission, user, "registered_model", name, "EDIT")


def once(make, *what: str) -> None:
    """Calls `make`, where it was not made before."""
    try:
        make(*what)
    except MlflowException as error:
        if error.error_code != TAKEN:
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
