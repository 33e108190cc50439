"""Ray, MLflow and an S3 store on this machine, without Docker, under one folder."""
