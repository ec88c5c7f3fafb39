"""The local stack: Kafka, Postgres, Redis and the services as processes of this machine."""
